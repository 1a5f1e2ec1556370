"""
What stands in quotation marks in a prompt, to be drawn letter by letter. Pure.

`reference.py` finds it as the model's own code does, which takes apostrophes and inch marks for quotation marks and knows four kinds
of them. `marks.py` finds what a reader would. `reading.py` brings the two together: a prompt that both read alike is left as it is.
"""
