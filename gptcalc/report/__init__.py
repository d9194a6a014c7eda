"""Documents -> characters: a view turns an answer into a `Document`, a function a format turns that into text."""
