"""The choices among kernels, measured on the card at hand and kept.

- `timing`: how long a launch takes
- `tune`: which choice is the fastest
- `kept`: earlier measurements, in the user's cache folder
"""
