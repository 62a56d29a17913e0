//! What people look at: progress, numbers with units, tables, plots and HTML pages.

pub mod format;
mod html;
mod plot;
mod progress;
mod scale;
mod svg;
mod table;

pub use html::Page;
pub use plot::Plot;
pub use progress::Progress;
pub use scale::Axis;
pub use table::Table;
