"""Feature bags for other tools and from them: one module per tool, none of which imports the tool."""
