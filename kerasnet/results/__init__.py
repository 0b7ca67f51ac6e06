"""Result cards: what runs came to, how to repeat them, and whether that gives the same again."""
