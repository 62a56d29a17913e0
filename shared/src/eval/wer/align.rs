//! Alignments with the fewest edits.

/// Most cells of a table of steps; longer pairs are divided. 64 MiB.
const MAX_CELLS: usize = 64 << 20;

/// One step of an alignment, from reference to hypothesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Both have the same token.
    Hit,
    /// The hypothesis has another token.
    Substitution,
    /// The hypothesis lacks the reference's token.
    Deletion,
    /// The hypothesis has a token more.
    Insertion,
}

/// An alignment with the fewest substitutions, deletions and insertions (Levenshtein's distance).
///
/// Of several such alignments it is the one of rapidfuzz, and therefore jiwer: what both have in
/// common at their start and then at their end is set aside as hits; the rest is walked from its end,
/// at each place with a deletion where one is optimal, else an insertion where one is optimal and a
/// substitution is not, else a substitution or hit. Pairs of more than 64 million cells (8,000 tokens
/// each) are divided in two at an optimal place first (Hirschberg), where ties may fall differently.
pub fn align<T: PartialEq>(reference: &[T], hypothesis: &[T]) -> Vec<Step> {
    let mut steps = Vec::with_capacity(reference.len().max(hypothesis.len()));
    align_within(reference, hypothesis, MAX_CELLS, &mut steps);
    steps
}

/// Appends the alignment to `steps`, with a table of at most `max_cells` cells (but at least two
/// rows).
fn align_within<T: PartialEq>(
    mut reference: &[T],
    mut hypothesis: &[T],
    max_cells: usize,
    steps: &mut Vec<Step>,
) {
    while let ([first, reference_rest @ ..], [other, hypothesis_rest @ ..]) =
        (reference, hypothesis)
        && first == other
    {
        (reference, hypothesis) = (reference_rest, hypothesis_rest);
        steps.push(Step::Hit);
    }
    let mut hits_at_end = 0;
    while let ([reference_rest @ .., last], [hypothesis_rest @ .., other]) = (reference, hypothesis)
        && last == other
    {
        (reference, hypothesis) = (reference_rest, hypothesis_rest);
        hits_at_end += 1;
    }
    if reference.len() > 1 && reference.len().saturating_mul(hypothesis.len()) > max_cells {
        let (first, second) = reference.split_at(reference.len() / 2);
        let (first_part, second_part) = hypothesis.split_at(best_split(first, second, hypothesis));
        align_within(first, first_part, max_cells, steps);
        align_within(second, second_part, max_cells, steps);
    } else {
        walk_table(reference, hypothesis, steps);
    }
    steps.resize(steps.len() + hits_at_end, Step::Hit);
}

/// Appends the alignment, found by filling a table of all pairs of prefixes.
fn walk_table<T: PartialEq>(reference: &[T], hypothesis: &[T], steps: &mut Vec<Step>) {
    let width = hypothesis.len();
    let mut table = Vec::with_capacity(reference.len() * width);
    let mut distances: Vec<usize> = (0..=width).collect();
    for token in reference {
        next_row(&mut distances, token, hypothesis.iter(), |step| table.push(step));
    }
    let (mut row, mut column) = (reference.len(), width);
    let start = steps.len();
    while row > 0 && column > 0 {
        let step = table[(row - 1) * width + column - 1];
        steps.push(step);
        row -= usize::from(step != Step::Insertion);
        column -= usize::from(step != Step::Deletion);
    }
    steps.resize(steps.len() + row, Step::Deletion);
    steps.resize(steps.len() + column, Step::Insertion);
    steps[start..].reverse();
}

/// Turns the distances of the reference before `token` from all prefixes of the hypothesis into those
/// of the reference with `token`; gives `visit` the last step for each prefix that is not empty.
fn next_row<'a, T: PartialEq + 'a>(
    distances: &mut [usize],
    token: &T,
    hypothesis: impl Iterator<Item = &'a T>,
    mut visit: impl FnMut(Step),
) {
    let mut diagonal = distances[0];
    distances[0] += 1;
    let mut left = distances[0];
    for (distance, other) in distances[1..].iter_mut().zip(hypothesis) {
        let is_same = token == other;
        let (deletion, insertion) = (*distance + 1, left + 1);
        let substitution = diagonal + 1;
        let best = deletion.min(insertion).min(if is_same { diagonal } else { substitution });
        visit(match best {
            _ if best == deletion => Step::Deletion,
            _ if best == insertion && best != substitution => Step::Insertion,
            _ if is_same => Step::Hit,
            _ => Step::Substitution,
        });
        diagonal = *distance;
        *distance = best;
        left = best;
    }
}

/// The length of the part of the hypothesis that goes with `first`, when the rest goes with `second`,
/// for the fewest edits.
fn best_split<T: PartialEq>(first: &[T], second: &[T], hypothesis: &[T]) -> usize {
    let mut before: Vec<usize> = (0..=hypothesis.len()).collect();
    for token in first {
        next_row(&mut before, token, hypothesis.iter(), |_| {});
    }
    let mut after: Vec<usize> = (0..=hypothesis.len()).collect();
    for token in second.iter().rev() {
        next_row(&mut after, token, hypothesis.iter().rev(), |_| {});
    }
    let sums = before.iter().zip(after.iter().rev()).map(|(before, after)| before + after);
    sums.zip(0..).min().map_or(0, |(_, place)| place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The distance by its recursive definition.
    fn distance(a: &[u8], b: &[u8]) -> usize {
        match (a, b) {
            ([], rest) | (rest, []) => rest.len(),
            ([x, a_rest @ ..], [y, b_rest @ ..]) => (distance(a_rest, b) + 1)
                .min(distance(a, b_rest) + 1)
                .min(distance(a_rest, b_rest) + usize::from(x != y)),
        }
    }

    /// Checks that `steps` lead from `a` to `b`; returns how many are edits.
    fn edits(a: &[u8], b: &[u8], steps: &[Step]) -> usize {
        let (mut a, mut b) = (a.iter(), b.iter());
        let mut count = 0;
        for step in steps {
            count += usize::from(*step != Step::Hit);
            match step {
                Step::Hit => assert_eq!(a.next().unwrap(), b.next().unwrap()),
                Step::Substitution => assert_ne!(a.next().unwrap(), b.next().unwrap()),
                Step::Deletion => drop(a.next().unwrap()),
                Step::Insertion => drop(b.next().unwrap()),
            }
        }
        assert_eq!((a.next(), b.next()), (None, None));
        count
    }

    proptest! {
        #[test]
        fn alignments_are_optimal_divided_or_not(
            a in proptest::collection::vec(0u8..4, 0..8),
            b in proptest::collection::vec(0u8..4, 0..8),
            max_cells in 0usize..20,
        ) {
            let expected = distance(&a, &b);
            prop_assert_eq!(edits(&a, &b, &align(&a, &b)), expected);
            let mut steps = vec![];
            align_within(&a, &b, max_cells, &mut steps);
            prop_assert_eq!(edits(&a, &b, &steps), expected);
        }
    }
}
