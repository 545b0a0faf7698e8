"""Does nudging help? Tasks, systems that answer them, statistics, and a page that shows it all."""
