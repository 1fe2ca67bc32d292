"""The statistics of a table: rows compared within seeds, verdicts, and what could be found."""
