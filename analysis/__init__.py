"""From the files of a run to tables, figures and one HTML report; and from many runs to one frame."""
