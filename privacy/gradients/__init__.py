"""Each patient's own gradient, at about the price of the batch's."""
