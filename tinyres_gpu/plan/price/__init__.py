"""What a training step must cost at least, without a card.

- `roofline`: the price of launches, by their bytes and their arithmetic
- `composed`: the launches of the step that composes pairs, to be priced beside a plan's
"""
