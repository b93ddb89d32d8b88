"""Votes of people: which of two pictures is better. Pictures of folders, pairs of them, a page, a file of votes."""
