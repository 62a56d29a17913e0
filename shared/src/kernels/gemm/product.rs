//! Whole products, spread over all threads.
#![allow(unsafe_code)]

use std::cell::RefCell;

use super::threads;
use super::{
    DotRows, Matrix, Output, PackedLeft, PackedRight, RightMatrix, Rows, Start, TileSize, dots,
    multiply,
};
use crate::kernels::epilogue::Epilogue;

/// Elements of a left matrix that are packed at once: 512 KiB, half of a usual second-level cache.
const BLOCK_ELEMENTS: usize = 1 << 17;

/// Most rows on the left whose products are taken row by row: packing the right matrix takes as
/// long as some five rows of products.
const MAX_DOT_ROWS: usize = 6;

/// The products of `left[i]` `[M, K]` and `right[i]` `[K, N]`, one after the other in row-major
/// order: `start + left * right` and what follows, which starts from zero or from a bias a column.
///
/// # Panics
/// When the matrices of a side differ in size, or the sizes do not fit each other.
pub(crate) fn products(
    left: &[Matrix],
    right: &[Matrix],
    start: Start,
    epilogue: Epilogue,
) -> Vec<f32> {
    let Some(&Matrix { rows: depth, columns, column_stride, row_stride, .. }) = right.first()
    else {
        return vec![];
    };
    if are_row_products(left, right) {
        return row_products(left, right, start, epilogue);
    }
    if column_stride == 1 || columns == 1 {
        let offsets: Vec<usize> = (0..depth).map(|row| row * row_stride).collect();
        let rows: Vec<Rows> =
            right.iter().map(|matrix| Rows { data: matrix.data, offsets: &offsets }).collect();
        let rows: Vec<&dyn RightMatrix> = rows.iter().map(|rows| rows as _).collect();
        products_with(left, &rows, columns, start, epilogue)
    } else {
        let packed = threads::map(right.len(), depth * columns * right.len(), |item| {
            PackedRight::new(right[item])
        });
        let packed: Vec<&dyn RightMatrix> = packed.iter().map(|packed| packed as _).collect();
        products_with(left, &packed, columns, start, epilogue)
    }
}

/// Whether [`products`] takes few rows on the left, without packing the right matrices.
pub(crate) fn are_row_products(left: &[Matrix], right: &[Matrix]) -> bool {
    let Some(&Matrix { rows: depth, row_stride, .. }) = right.first() else { return false };
    let rows_lie_along_depth = left.iter().all(|matrix| matrix.column_stride == 1)
        && (row_stride == 1 || depth == 1)
        && depth > 0;
    rows_lie_along_depth && left.iter().all(|matrix| matrix.rows <= MAX_DOT_ROWS)
}

/// [`products`] of few rows, all of which lie along the depth.
fn row_products(left: &[Matrix], right: &[Matrix], start: Start, epilogue: Epilogue) -> Vec<f32> {
    assert_eq!(left.len(), right.len());
    let (Matrix { rows, columns: depth, .. }, columns) = (left[0], right[0].columns);
    let count = left.len() * rows * columns;
    let flops = 2 * count * depth;
    let block = columns.div_ceil(threads::parts(left.len(), flops)).max(1);
    let blocks = columns.div_ceil(block);
    let mut out = Vec::with_capacity(count);
    let output = Output { data: out.as_mut_ptr(), stride: columns };
    threads::for_each(left.len() * blocks, flops, |task| {
        let (item, first) = (task / blocks, task % blocks * block);
        let part = first..columns.min(first + block);
        let (a, b) = (left[item], right[item]);
        let left_offsets: Vec<usize> = (0..rows).map(|row| row * a.row_stride).collect();
        let right_offsets: Vec<usize> = part.clone().map(|c| c * b.column_stride).collect();
        let a = DotRows { data: a.data, item_stride: 0, offsets: &left_offsets };
        let b = DotRows { data: b.data, item_stride: 0, offsets: &right_offsets };
        // SAFETY: the tasks write disjoint parts of `out`, which has room for all of them.
        unsafe {
            let output = output.from(item * rows, first);
            dots(a, b, 1, depth, output);
            for row in 0..rows {
                let out = output.data.add(row * output.stride);
                let out = std::slice::from_raw_parts_mut(out, part.len());
                match start {
                    Start::Zero => {}
                    Start::ColumnBias(bias) => {
                        out.iter_mut().zip(&bias[part.clone()]).for_each(|(y, bias)| *y += bias);
                    }
                    other => unreachable!("products that start from {other:?}"),
                }
                epilogue.finish(out, 0, (item * rows + row) * columns + first);
            }
        }
    });
    // SAFETY: the tasks wrote all elements.
    unsafe { out.set_len(count) };
    out
}

/// [`products`] with right matrices of `columns` columns in a form of their own.
pub(crate) fn products_with(
    left: &[Matrix],
    right: &[&dyn RightMatrix],
    columns: usize,
    start: Start,
    epilogue: Epilogue,
) -> Vec<f32> {
    thread_local! {
        static PACKED: RefCell<(PackedLeft, Vec<f32>)> = RefCell::default();
    }
    assert_eq!(left.len(), right.len());
    let Some(&Matrix { rows, columns: depth, .. }) = left.first() else { return vec![] };
    let count = left.len() * rows * columns;
    if count == 0 {
        return vec![];
    }
    if depth == 0 {
        let mut out = match start {
            Start::ColumnBias(bias) => bias.repeat(left.len() * rows),
            _ => vec![0.0; count],
        };
        epilogue.finish(&mut out, 0, 0);
        return out;
    }
    let flops = 2 * count * depth;
    let tile = TileSize::largest();
    let parts = threads::parts(left.len(), flops);
    let fitting_rows = BLOCK_ELEMENTS / depth / tile.rows * tile.rows;
    let block_rows =
        rows.div_ceil(parts).next_multiple_of(tile.rows).min(fitting_rows).max(tile.rows);
    let row_blocks = rows.div_ceil(block_rows);
    // Few rows are split by columns.
    let column_blocks = parts.div_ceil(row_blocks);
    let block_columns = columns.div_ceil(column_blocks).next_multiple_of(tile.columns);
    let column_blocks = columns.div_ceil(block_columns);

    let mut out = Vec::with_capacity(count);
    let output = Output { data: out.as_mut_ptr(), stride: columns };
    threads::for_each(left.len() * row_blocks * column_blocks, flops, |task| {
        let (block, item) =
            (task % (row_blocks * column_blocks), task / (row_blocks * column_blocks));
        let first_row = block / column_blocks * block_rows;
        let first_column = block % column_blocks * block_columns;
        let part = left[item].rows_from(first_row, block_rows.min(rows - first_row));
        let part_columns = first_column..columns.min(first_column + block_columns);
        PACKED.with_borrow_mut(|(packed, buffer)| {
            packed.pack(part);
            // SAFETY: the tasks write disjoint parts of `out`, which has room for all of them.
            unsafe {
                let output = output.from(item * rows + first_row, 0);
                multiply(packed, right[item], part_columns.clone(), start, output, buffer);
                for row in 0..part.rows {
                    let start = output.data.add(row * output.stride + part_columns.start);
                    let elements = std::slice::from_raw_parts_mut(start, part_columns.len());
                    let at = (item * rows + first_row + row) * columns + part_columns.start;
                    epilogue.finish(elements, 0, at);
                }
            }
        });
    });
    // SAFETY: the tasks wrote all elements.
    unsafe { out.set_len(count) };
    out
}
