"""One HTML page on own data: what was chosen, what it is worth, what is missing; and the pages that it is made of."""
