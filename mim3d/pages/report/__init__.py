"""A page one can send: tables, pictures and prose in a single file that needs no network."""
