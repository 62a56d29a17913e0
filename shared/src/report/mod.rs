//! Progress, tables, plots and HTML pages.
