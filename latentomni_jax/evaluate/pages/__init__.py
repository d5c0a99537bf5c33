"""What people look at: the demo's page, the page of runs with its explorer, plots, the app."""
