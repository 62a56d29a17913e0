//! Batches of items of similar length.

/// Groups items, given their `lengths`, into batches of at most `max_items` items and, filled up to
/// the longest of the batch, at most `max_total` in length. A longer item makes a batch of its own.
///
/// Returns the numbers of the items, batch by batch, from the shortest to the longest; items of the
/// same length keep their order. Every item is in one batch.
pub fn length_buckets(lengths: &[usize], max_items: usize, max_total: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<(usize, usize)> = lengths.iter().copied().zip(0..).collect();
    order.sort_unstable();
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for (length, item) in order {
        // In this order the item at hand is the longest of its batch.
        match batches.last_mut() {
            Some(batch)
                if batch.len() < max_items
                    && (batch.len() + 1).saturating_mul(length) <= max_total =>
            {
                batch.push(item);
            }
            _ => batches.push(vec![item]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn similar_lengths_share_a_batch() {
        let lengths = [30, 10, 30, 20, 10, 99];
        assert_eq!(length_buckets(&lengths, 2, 60), [vec![1, 4], vec![3, 0], vec![2], vec![5]]);
        assert_eq!(length_buckets(&lengths, 9, 60), [vec![1, 4, 3], vec![0, 2], vec![5]]);
        assert!(length_buckets(&[], 2, 60).is_empty());
        assert_eq!(length_buckets(&[0, 0], 0, 0), [[0], [1]]);
    }

    proptest! {
        #[test]
        fn every_item_is_in_one_batch_within_bounds(
            lengths in proptest::collection::vec(0usize..100, 0..50),
            max_items in 1usize..8,
            max_total in 1usize..300,
        ) {
            let batches = length_buckets(&lengths, max_items, max_total);
            for batch in &batches {
                let longest = batch.iter().map(|&item| lengths[item]).max().unwrap();
                prop_assert!(batch.len() <= max_items);
                prop_assert!(batch.len() == 1 || batch.len() * longest <= max_total);
            }
            let mut items = batches.concat();
            items.sort_unstable();
            prop_assert_eq!(items, (0..lengths.len()).collect::<Vec<_>>());
        }
    }
}
