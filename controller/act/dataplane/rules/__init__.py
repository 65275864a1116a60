"""What each noun puts into the tables of one datapath: pure functions of the view."""
