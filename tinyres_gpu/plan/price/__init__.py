"""The least that a training step must cost, found without a card.

- `roofline`: the price of launches, by their bytes and their arithmetic
- `composed`: the launches of the composed step, to be compared with those of a plan
"""
