//! Products of packed matrices of words.
#![allow(unsafe_code)]

use std::ops::Range;

use rten_simd::isa::GenericIsa;

use super::tile::{Left, Right, Sums, VECTORS, tile};
use super::words::{Bf16, Product, SignedUnsigned, UnsignedSigned, Widened, Words};
use crate::kernels::isa::InstructionSet;

/// What the words of both sides of a product hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operands {
    /// bf16 on both sides; the sums are `f32`.
    Bf16,
    /// Signed 8-bit integers on the left, unsigned ones on the right; the sums are `i32`.
    SignedUnsigned,
    /// Unsigned 8-bit integers on the left, signed ones on the right; the sums are `i32`.
    UnsignedSigned,
}

/// The tiles of an instruction set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiles {
    set: InstructionSet,
    /// Most rows.
    pub rows: usize,
    /// Most columns.
    pub columns: usize,
}

/// Words that can be read behind the last one of a right matrix: tiles read whole vectors.
pub(crate) const SLACK: usize = 32;

impl Tiles {
    /// The tiles of an instruction set that the processor has.
    pub fn of(set: InstructionSet) -> Self {
        struct Size;
        impl Work for Size {
            type Output = (usize, usize);

            #[inline(always)]
            fn run<W: Words>(self, words: W) -> (usize, usize) {
                (W::ROWS, VECTORS * words.len())
            }
        }
        let (rows, columns) = compiled_for(set, Size);
        Self { set, rows, columns }
    }

    /// Rows of a panel: the fewest tiles for `rows` rows, all about equally high.
    pub fn panel_height(self, rows: usize) -> usize {
        rows.div_ceil(rows.div_ceil(self.rows).max(1)).max(1)
    }
}

/// Work that is compiled for each instruction set.
trait Work {
    type Output;

    fn run<W: Words>(self, words: W) -> Self::Output;
}

/// Runs `work`, compiled for `set` or, where that has nothing for narrow numbers, the best below.
fn compiled_for<T: Work>(set: InstructionSet, work: T) -> T::Output {
    assert!(InstructionSet::available().any(|available| available == set));
    #[cfg(target_arch = "x86_64")]
    {
        use super::words::{Avx2, Avx512};

        #[target_feature(
            enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,f16c,fma"
        )]
        fn with_avx512<T: Work>(words: Avx512, work: T) -> T::Output {
            work.run(words)
        }
        #[target_feature(enable = "avx,avx2,f16c,fma")]
        fn with_avx2<T: Work>(words: Avx2, work: T) -> T::Output {
            work.run(words)
        }
        if set >= InstructionSet::Avx512Narrow {
            // SAFETY: the processor has the instructions, as was just checked.
            return unsafe { with_avx512(Avx512::new_unchecked(), work) };
        }
        if set >= InstructionSet::Avx2 {
            // SAFETY: as above.
            return unsafe { with_avx2(Avx2::new_unchecked(), work) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if set >= InstructionSet::Neon
        && let Some(isa) = rten_simd::isa::ArmNeonIsa::new()
    {
        return work.run(Widened(isa));
    }
    work.run(Widened(GenericIsa::new()))
}

/// A left matrix, arranged for the tiles: panels of rows, within which the words of one depth lie
/// side by side.
#[derive(Clone, Debug, Default)]
pub(crate) struct PackedLeft {
    data: Vec<u32>,
    rows: usize,
    depth: usize,
    panel_height: usize,
}

impl PackedLeft {
    /// Packs a matrix of `rows` rows of `depth` words; `row(r, out)` writes row `r`.
    pub fn pack(
        &mut self,
        tiles: Tiles,
        [rows, depth]: [usize; 2],
        row: impl Fn(usize, &mut [u32]),
    ) {
        let height = tiles.panel_height(rows);
        (self.rows, self.depth, self.panel_height) = (rows, depth, height);
        if depth == 0 {
            return;
        }
        let count = rows.next_multiple_of(height) * depth;
        // The row that is written lies behind the panels.
        self.data.resize((count + depth).max(self.data.len()), 0);
        let (panels, line) = self.data.split_at_mut(count);
        let line = &mut line[..depth];
        for r in 0..rows {
            row(r, line);
            let panel = &mut panels[r / height * height * depth + r % height..];
            for (out, &word) in panel.iter_mut().step_by(height).zip(&*line) {
                *out = word;
            }
        }
    }
}

/// A right matrix, read a panel at a time.
pub(crate) trait RightMatrix: Sync {
    /// The words of `columns` (no more than a tile has); in `buffer` unless they can be read where
    /// they are.
    fn panel<'a>(&'a self, columns: Range<usize>, buffer: &'a mut Vec<u32>) -> Right<'a>;
}

/// A right matrix, arranged for the tiles: panels of columns, within which the words of one depth
/// lie side by side.
#[derive(Clone, Debug)]
pub(crate) struct PackedRight {
    data: Vec<u32>,
    /// Offset of each depth in a panel.
    offsets: Vec<usize>,
}

impl PackedRight {
    /// Packs a matrix whose column `c` has the `depth` words from `columns[c * depth]` on.
    pub fn new(tiles: Tiles, columns: &[u32], depth: usize) -> Self {
        let width = tiles.columns;
        let count = columns.len().checked_div(depth).unwrap_or(0);
        let mut data = vec![0; count.next_multiple_of(width) * depth + SLACK];
        for (c, column) in columns.chunks_exact(depth.max(1)).enumerate() {
            let panel = &mut data[c / width * width * depth + c % width..];
            for (out, &word) in panel.iter_mut().step_by(width).zip(column) {
                *out = word;
            }
        }
        Self { data, offsets: (0..depth).map(|k| k * width).collect() }
    }
}

impl RightMatrix for PackedRight {
    fn panel<'a>(&'a self, columns: Range<usize>, _buffer: &'a mut Vec<u32>) -> Right<'a> {
        // Panels start at multiples of their width, as `multiply` walks them.
        let panel = &self.data[columns.start * self.offsets.len()..];
        Right { data: panel, offsets: &self.offsets }
    }
}

/// Computes the sums of the part `columns` of the product of `left` and `right` on this thread:
/// their bits, to `sums`, which stands for the whole matrix.
///
/// `columns` starts at a multiple of the tile's width. Every element is summed in the order of
/// depth, whatever part it is computed with.
///
/// # Safety
/// `sums` must be valid for all rows of `left` at `columns`; nobody else may access these elements
/// meanwhile.
pub(crate) unsafe fn multiply(
    tiles: Tiles,
    operands: Operands,
    left: &PackedLeft,
    right: &dyn RightMatrix,
    columns: Range<usize>,
    sums: Sums,
    buffer: &mut Vec<u32>,
) {
    struct Multiply<'a, P> {
        _product: P,
        left: &'a PackedLeft,
        right: &'a dyn RightMatrix,
        columns: Range<usize>,
        sums: Sums,
        buffer: &'a mut Vec<u32>,
    }
    impl<P: Product> Work for Multiply<'_, P> {
        type Output = ();

        #[inline(always)]
        fn run<W: Words>(self, words: W) {
            let Self { left, right, columns, sums, buffer, .. } = self;
            let height = left.panel_height;
            let width = VECTORS * words.len();
            for column in columns.clone().step_by(width) {
                let panel = column..columns.end.min(column + width);
                let right = right.panel(panel.clone(), buffer);
                right.check(width);
                for row in (0..left.rows).step_by(height) {
                    let data = &left.data[row * left.depth..][..height * left.depth];
                    let operand = Left { data, stride: height };
                    let rows = height.min(left.rows - row);
                    // SAFETY: the right operand was checked; the sums are a tile of the matrix,
                    // which the caller vouches for.
                    unsafe {
                        let sums = sums.from(row, column);
                        tile::<W, P>(words, [rows, panel.len()], operand, right, sums);
                    }
                }
            }
        }
    }
    macro_rules! run {
        ($product:expr) => {
            compiled_for(
                tiles.set,
                Multiply { _product: $product, left, right, columns, sums, buffer },
            )
        };
    }
    match operands {
        Operands::Bf16 => run!(Bf16),
        Operands::SignedUnsigned => run!(SignedUnsigned),
        Operands::UnsignedSigned => run!(UnsignedSigned),
    }
}
