"""Naming actions by hand: a page that shows pairs of a folder's clips and keeps every answer."""
