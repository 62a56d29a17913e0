//! Items prepared ahead of time by background threads.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use crate::rng::Stream;
use crate::{Error, Result};

/// How a [`Loader`] works.
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions {
    /// Number of items in an epoch.
    pub items: usize,
    /// Number of items in a batch.
    pub batch: usize,
    /// Whether the last items of an epoch, too few for a batch, are left out.
    pub drop_last: bool,
    /// Seed of a new order for each epoch; `None` keeps the order of the items.
    pub shuffle_seed: Option<u64>,
    /// Epochs after which the loader ends; `None` goes on for ever.
    pub epochs: Option<u64>,
    /// Background threads.
    pub workers: usize,
    /// Most items that are prepared or in preparation beyond those handed out.
    pub ahead: usize,
    /// Whether items that fail are left out of their batch and listed in [`Batch::skipped`];
    /// otherwise the first failure is the loader's.
    pub skip_failures: bool,
}

/// A place between two batches: where to go on after a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// How many items of the epoch have been handed out.
    pub next: usize,
}

/// Items that belong together.
#[derive(Debug)]
pub struct Batch<T> {
    /// The epoch that they belong to.
    pub epoch: u64,
    /// Their numbers, in the order of `items`.
    pub indices: Vec<usize>,
    /// The items.
    pub items: Vec<T>,
    /// Numbers and errors of items that failed and were left out.
    pub skipped: Vec<(usize, Error)>,
}

/// Batches of items that background threads prepare ahead, in bounded memory.
///
/// What comes, and in which order, depends on neither the number of threads nor their timing, so
/// long as the function that prepares an item depends on nothing but the epoch and the number of
/// the item (its random numbers: `Stream::new(seed, purpose, epoch * items + index)`). Dropping the
/// loader ends the threads after the items that they are at.
pub struct Loader<T> {
    options: LoaderOptions,
    shared: Arc<Shared<T>>,
    workers: Vec<JoinHandle<()>>,
    position: Position,
    failed: bool,
}

/// A prepared item, or the panic that preparing it ended in.
type Outcome<T> = std::thread::Result<Result<T>>;

struct Shared<T> {
    state: Mutex<State<T>>,
    room: Condvar,
    ready: Condvar,
}

struct State<T> {
    stop: bool,
    /// Number, since the start of the loader, of the next item to prepare.
    next: u64,
    /// Number of the next item to hand out.
    wanted: u64,
    done: BTreeMap<u64, (usize, Outcome<T>)>,
    schedule: Schedule,
}

impl<T> Shared<T> {
    /// The state; a panic elsewhere leaves it usable, as every change to it is a single step.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sequence of items over all epochs.
struct Schedule {
    position: Position,
    items_per_epoch: usize,
    items: usize,
    seed: Option<u64>,
    epochs: Option<u64>,
    /// Order of the current epoch.
    order: Vec<usize>,
}

impl Schedule {
    fn new(options: &LoaderOptions, position: Position) -> Self {
        let mut schedule = Self {
            position,
            items_per_epoch: options.items_per_epoch(),
            items: options.items,
            seed: options.shuffle_seed,
            epochs: options.epochs,
            order: Vec::new(),
        };
        schedule.arrange();
        schedule
    }

    /// Epoch and number of the next item; `None` after the last epoch.
    fn next(&mut self) -> Option<(u64, usize)> {
        if self.epochs.is_some_and(|epochs| self.position.epoch >= epochs) {
            return None;
        }
        let index = self.order.get(self.position.next).copied()?;
        let epoch = self.position.epoch;
        self.position.next += 1;
        if self.position.next == self.items_per_epoch {
            self.position = Position { epoch: epoch + 1, next: 0 };
            self.arrange();
        }
        Some((epoch, index))
    }

    fn arrange(&mut self) {
        self.order = (0..self.items).collect();
        if let Some(seed) = self.seed {
            Stream::new(seed, "order of items", self.position.epoch).shuffle(&mut self.order);
        }
    }
}

impl LoaderOptions {
    /// Number of items of an epoch that are handed out.
    pub fn items_per_epoch(&self) -> usize {
        if self.drop_last { self.items - self.items % self.batch.max(1) } else { self.items }
    }

    /// Number of batches in an epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.items_per_epoch().div_ceil(self.batch.max(1))
    }
}

impl<T: Send + 'static> Loader<T> {
    /// Starts threads that call `prepare(epoch, index)` for the items from `position` on.
    ///
    /// # Errors
    /// [`Error::Argument`] when there are no items, batch, threads or room ahead, when an epoch has
    /// no whole batch, or when `position` is not between two batches of these options.
    pub fn new(
        options: LoaderOptions,
        position: Position,
        prepare: impl Fn(u64, usize) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        for (value, what) in [
            (options.items, "items"),
            (options.batch, "items in a batch"),
            (options.workers, "threads"),
            (options.ahead, "items ahead"),
        ] {
            if value == 0 {
                return Err(Error::Argument(format!("a loader with 0 {what}")));
            }
        }
        let items_per_epoch = options.items_per_epoch();
        if items_per_epoch == 0 {
            return Err(Error::Argument(format!(
                "{} items make no whole batch of {}",
                options.items, options.batch
            )));
        }
        if position.next >= items_per_epoch || !position.next.is_multiple_of(options.batch) {
            return Err(Error::Argument(format!(
                "cannot go on after {} items of an epoch of {items_per_epoch} in batches of {}: \
                 other data or another batch size than before",
                position.next, options.batch
            )));
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                stop: false,
                next: 0,
                wanted: 0,
                done: BTreeMap::new(),
                schedule: Schedule::new(&options, position),
            }),
            room: Condvar::new(),
            ready: Condvar::new(),
        });
        let mut loader = Self { options, shared, workers: Vec::new(), position, failed: false };
        let prepare = Arc::new(prepare);
        for number in 0..options.workers {
            let (shared, prepare) = (Arc::clone(&loader.shared), Arc::clone(&prepare));
            let worker = std::thread::Builder::new()
                .name(format!("loader {number}"))
                .spawn(move || work(&shared, options.ahead as u64, &*prepare))
                .map_err(|error| Error::Argument(format!("cannot start a thread: {error}")))?;
            loader.workers.push(worker);
        }
        Ok(loader)
    }

    /// Where to start to get the batches that have not been handed out.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next batch; `None` after the last epoch.
    ///
    /// # Errors
    /// The error of the first item that failed, after which the loader ends; with
    /// [`LoaderOptions::skip_failures`], only when all items of a batch failed.
    ///
    /// # Panics
    /// When preparing an item panicked.
    pub fn next_batch(&mut self) -> Result<Option<Batch<T>>> {
        let Position { epoch, next } = self.position;
        if self.failed || self.options.epochs.is_some_and(|epochs| epoch >= epochs) {
            return Ok(None);
        }
        let items_per_epoch = self.options.items_per_epoch();
        let count = self.options.batch.min(items_per_epoch - next);
        let mut batch = Batch {
            epoch,
            indices: Vec::with_capacity(count),
            items: Vec::with_capacity(count),
            skipped: Vec::new(),
        };
        for _ in 0..count {
            let (index, outcome) = self.take();
            let result = outcome.unwrap_or_else(|panic| {
                self.failed = true;
                panic::resume_unwind(panic)
            });
            match result {
                Ok(item) => {
                    batch.indices.push(index);
                    batch.items.push(item);
                }
                Err(error) if self.options.skip_failures => batch.skipped.push((index, error)),
                Err(error) => {
                    self.failed = true;
                    return Err(error);
                }
            }
        }
        self.position = if next + count == items_per_epoch {
            Position { epoch: epoch + 1, next: 0 }
        } else {
            Position { epoch, next: next + count }
        };
        match batch.skipped.pop() {
            Some((_, error)) if batch.items.is_empty() => Err(error),
            last => {
                batch.skipped.extend(last);
                Ok(Some(batch))
            }
        }
    }

    /// Waits for the next item in order.
    fn take(&self) -> (usize, Outcome<T>) {
        let mut state = self.shared.lock();
        loop {
            let wanted = state.wanted;
            if let Some(found) = state.done.remove(&wanted) {
                state.wanted += 1;
                self.shared.room.notify_all();
                return found;
            }
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.room.notify_all();
        for worker in self.workers.drain(..) {
            // Panics of `prepare` are caught and handed out; a thread has no other result.
            let _ = worker.join();
        }
    }
}

/// Prepares items until told to stop or none is left.
fn work<T>(shared: &Shared<T>, ahead: u64, prepare: &dyn Fn(u64, usize) -> Result<T>) {
    loop {
        let mut state = shared.lock();
        while !state.stop && state.next - state.wanted >= ahead {
            state = shared.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stop {
            return;
        }
        let Some((epoch, index)) = state.schedule.next() else { return };
        let number = state.next;
        state.next += 1;
        drop(state);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| prepare(epoch, index)));
        shared.lock().done.insert(number, (index, outcome));
        shared.ready.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const OPTIONS: LoaderOptions = LoaderOptions {
        items: 23,
        batch: 4,
        drop_last: false,
        shuffle_seed: Some(5),
        epochs: Some(3),
        workers: 2,
        ahead: 6,
        skip_failures: false,
    };

    /// What an augmenting reader would do: a value that depends on a stream of the item's own, after
    /// a time that does not.
    fn prepare(epoch: u64, index: usize) -> Result<(usize, u64)> {
        std::thread::sleep(std::time::Duration::from_micros((index as u64 * 7919) % 300));
        Ok((index, Stream::new(1, "item", epoch * 23 + index as u64).bits()))
    }

    type Row = (u64, Vec<usize>, Vec<(usize, u64)>);

    fn drain(loader: &mut Loader<(usize, u64)>) -> Vec<Row> {
        std::iter::from_fn(|| loader.next_batch().unwrap())
            .map(|batch| (batch.epoch, batch.indices, batch.items))
            .collect()
    }

    #[test]
    fn content_and_order_do_not_depend_on_threads() {
        let run = |workers, ahead| {
            let options = LoaderOptions { workers, ahead, ..OPTIONS };
            drain(&mut Loader::new(options, Position::default(), prepare).unwrap())
        };
        let reference = run(1, 1);
        assert_eq!(reference.len(), 18);
        for (workers, ahead) in [(1, 50), (2, 3), (8, 8), (5, 100)] {
            assert_eq!(run(workers, ahead), reference, "{workers} {ahead}");
        }
        for epoch in 0..3 {
            let mut indices: Vec<usize> = reference
                .iter()
                .filter(|row| row.0 == epoch)
                .flat_map(|row| row.1.clone())
                .collect();
            assert_ne!(indices, (0..23).collect::<Vec<_>>());
            indices.sort_unstable();
            assert_eq!(indices, (0..23).collect::<Vec<_>>());
        }
        assert_ne!(reference[0].1, reference[6].1, "epochs differ in order");
    }

    #[test]
    fn every_position_resumes_exactly() {
        for drop_last in [false, true] {
            let options = LoaderOptions { drop_last, ..OPTIONS };
            let mut loader = Loader::new(options, Position::default(), prepare).unwrap();
            let mut positions = vec![loader.position()];
            let mut rows = Vec::new();
            while let Some(batch) = loader.next_batch().unwrap() {
                rows.push((batch.epoch, batch.indices, batch.items));
                positions.push(loader.position());
            }
            assert_eq!(rows.len(), 3 * options.batches_per_epoch());
            for (done, position) in positions.into_iter().enumerate() {
                let json = serde_json::to_string(&position).unwrap();
                let position = serde_json::from_str(&json).unwrap();
                let mut resumed = Loader::new(options, position, prepare).unwrap();
                assert_eq!(drain(&mut resumed), rows[done..]);
            }
        }
    }

    #[test]
    fn without_a_seed_the_order_is_kept() {
        let options = LoaderOptions { shuffle_seed: None, epochs: Some(1), ..OPTIONS };
        let rows = drain(&mut Loader::new(options, Position::default(), prepare).unwrap());
        let indices: Vec<usize> = rows.into_iter().flat_map(|row| row.1).collect();
        assert_eq!(indices, (0..23).collect::<Vec<_>>());
    }

    fn fails_on_odd(_: u64, index: usize) -> Result<usize> {
        if index % 2 == 1 { Err(Error::Argument(format!("item {index}"))) } else { Ok(index) }
    }

    #[test]
    fn failures_end_the_loader_or_are_listed() {
        let options = LoaderOptions { shuffle_seed: None, epochs: Some(1), ..OPTIONS };
        let mut strict = Loader::new(options, Position::default(), fails_on_odd).unwrap();
        assert_eq!(strict.next_batch().unwrap_err().to_string(), "item 1");
        assert!(strict.next_batch().unwrap().is_none());

        let options = LoaderOptions { skip_failures: true, ..options };
        let mut lenient = Loader::new(options, Position::default(), fails_on_odd).unwrap();
        let mut skipped = Vec::new();
        let mut kept = Vec::new();
        while let Some(batch) = lenient.next_batch().unwrap() {
            assert_eq!(batch.indices, batch.items);
            kept.extend(batch.items);
            skipped
                .extend(batch.skipped.into_iter().map(|(index, error)| (index, error.to_string())));
        }
        assert_eq!(kept, (0..23).step_by(2).collect::<Vec<_>>());
        assert_eq!(
            skipped,
            (1..23).step_by(2).map(|i| (i, format!("item {i}"))).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_batch_of_failures_is_an_error_that_can_be_passed_over() {
        let options =
            LoaderOptions { shuffle_seed: None, skip_failures: true, batch: 1, ..OPTIONS };
        let mut loader = Loader::new(options, Position::default(), fails_on_odd).unwrap();
        assert_eq!(loader.next_batch().unwrap().unwrap().items, [0]);
        assert!(loader.next_batch().is_err());
        assert_eq!(loader.next_batch().unwrap().unwrap().items, [2]);
    }

    #[test]
    fn no_more_than_asked_is_prepared_ahead_and_dropping_ends_it() {
        let prepared = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&prepared);
        let options = LoaderOptions { epochs: None, ahead: 7, workers: 3, ..OPTIONS };
        let mut loader = Loader::new(options, Position::default(), move |_, index| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(index)
        })
        .unwrap();
        for batches in 1..=30 {
            loader.next_batch().unwrap().unwrap();
            std::thread::yield_now();
            assert!(prepared.load(Ordering::SeqCst) <= batches * 4 + 7);
        }
        drop(loader);
        assert_eq!(Arc::strong_count(&prepared), 1, "the threads have let go of the function");
    }

    #[test]
    #[should_panic(expected = "bug in item 3")]
    fn panics_reach_the_caller() {
        let options = LoaderOptions { shuffle_seed: None, ..OPTIONS };
        let mut loader = Loader::new(options, Position::default(), |_, index| {
            assert!(index != 3, "bug in item {index}");
            Ok(index)
        })
        .unwrap();
        while loader.next_batch().unwrap().is_some() {}
    }

    #[test]
    fn absurd_options_and_foreign_positions_are_refused() {
        let refused = |options, position| Loader::new(options, position, prepare).is_err();
        let start = Position::default();
        assert!(refused(LoaderOptions { items: 0, ..OPTIONS }, start));
        assert!(refused(LoaderOptions { batch: 0, ..OPTIONS }, start));
        assert!(refused(LoaderOptions { workers: 0, ..OPTIONS }, start));
        assert!(refused(LoaderOptions { ahead: 0, ..OPTIONS }, start));
        assert!(refused(LoaderOptions { items: 3, drop_last: true, ..OPTIONS }, start));
        assert!(refused(OPTIONS, Position { epoch: 0, next: 3 }));
        assert!(refused(OPTIONS, Position { epoch: 0, next: 24 }));
    }
}
