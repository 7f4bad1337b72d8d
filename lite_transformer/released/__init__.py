"""Released models: a folder with weights, dictionaries, subword codes, and a card that says what they are.

`card` is what is known of one, `folder` finds and checks them, `making` makes them. Finding and checking import neither
torch nor fairseq.
"""
