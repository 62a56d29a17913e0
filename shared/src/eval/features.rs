//! Features of a set of clips, recordings or pictures, for comparing sets with one another.

use nalgebra::DMatrix;

use crate::{Error, Result};

/// A row of numbers for each item of a set, all rows equally long and all numbers finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    dimensions: usize,
    values: Vec<f64>,
}

impl Features {
    /// The features `rows`; `what` names them in messages.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are none, or rows differ in length or are empty;
    /// [`Error::NonFinite`].
    pub fn new<T: Copy + Into<f64>>(what: &str, rows: &[impl AsRef<[T]>]) -> Result<Self> {
        let dimensions = rows.first().map_or(0, |row| row.as_ref().len());
        let lengths: Vec<usize> = rows.iter().map(|row| row.as_ref().len()).collect();
        if dimensions == 0 || lengths.iter().any(|length| *length != dimensions) {
            let odd = lengths.into_iter().find(|length| *length != dimensions);
            let expected = format!("rows of {dimensions} numbers, at least one");
            return Err(Error::shape(what, expected, &[rows.len(), odd.unwrap_or(dimensions)]));
        }
        let values: Vec<f64> =
            rows.iter().flat_map(|row| row.as_ref()).map(|value| (*value).into()).collect();
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::NonFinite { what: what.to_owned() });
        }
        Ok(Self { dimensions, values })
    }

    /// Number of items.
    pub fn count(&self) -> usize {
        self.values.len() / self.dimensions
    }

    /// Numbers an item has.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The items' numbers in turn.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f64]> {
        self.values.chunks_exact(self.dimensions)
    }

    /// The items at `places`, which may repeat; places beyond the end are left out.
    #[must_use]
    pub fn selected(&self, places: &[usize]) -> Self {
        let row =
            |place: &usize| self.values.get(place * self.dimensions..(place + 1) * self.dimensions);
        let values = places.iter().filter_map(row).flatten().copied().collect();
        Self { dimensions: self.dimensions, values }
    }

    /// The features as a matrix `[count, dimensions]`.
    pub(super) fn matrix(&self) -> DMatrix<f64> {
        DMatrix::from_row_slice(self.count(), self.dimensions, &self.values)
    }

    /// Fails unless `other` has as many dimensions.
    pub(super) fn check_comparable(&self, other: &Self) -> Result<()> {
        if self.dimensions == other.dimensions {
            return Ok(());
        }
        let expected = format!("{} numbers an item", self.dimensions);
        Err(Error::shape("features to compare", expected, &[other.dimensions]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_equally_long_and_finite() {
        let features = Features::new("f", &[[1.0f32, 2.0], [3.0, 4.0]]).unwrap();
        assert_eq!((features.count(), features.dimensions()), (2, 2));
        let drawn = features.selected(&[1, 1, 0, 7]);
        assert_eq!(drawn.rows().flatten().copied().collect::<Vec<_>>(), [3., 4., 3., 4., 1., 2.]);
        let ragged = Features::new("f", &[vec![1.0], vec![1.0, 2.0]]);
        assert!(matches!(ragged, Err(Error::Shape { .. })));
        for empty in [&[][..], &[vec![]]] {
            assert!(Features::new::<f64>("f", empty).is_err());
        }
        assert!(matches!(Features::new("f", &[[f64::NAN]]), Err(Error::NonFinite { .. })));
    }
}
