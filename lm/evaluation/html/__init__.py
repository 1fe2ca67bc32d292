"""HTML of reports: elements, and the style that pages share."""
