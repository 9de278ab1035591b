"""How a model is run rewritten: the function mode, what each functional call gets, and one run of a model."""
