//! One call: its texts without repetitions, its windows, and the steps that are left.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::queue::{Job, Priority};
use super::ticket::Ticket;
use crate::batch::{self, Limits};
use crate::error::{Error, Result};
use crate::guard;
use crate::memory;
use crate::sync::{Arc, Mutex};
use crate::tokenizer::{Input, TokenizedText};
use crate::vector::Encoding;

/// Texts tokenized by one step.
pub const TEXTS_PER_STEP: usize = 64;

/// Texts planned together. Enough that texts of similar length find each other; few enough that the first batch of a long
/// call starts soon.
const TEXTS_PER_WINDOW: usize = 1024;

/// For errors: what memory is allocated for.
const TEXTS: &str = "the list of texts";

/// What a worker does for a call before others get their turn. Numbers are places in [`Distinct`].
pub enum Step {
    /// Finds equal texts.
    Deduplicate,
    /// Tokenizes a range of the distinct texts, all of one window.
    Tokenize(Range<usize>),
    /// Computes one batch of distinct texts.
    Compute(Vec<usize>),
}

/// What a caller wants.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Texts to embed.
    pub texts: Vec<Input>,
    /// Whether they are queries instead of documents.
    pub is_query: bool,
    /// How the vectors are stored.
    pub encoding: Encoding,
}

/// A submitted call.
pub struct Call {
    pub request: Request,
    /// Whether batches are computed roughly in the order of their texts, instead of longest first.
    pub is_streamed: bool,
    pub ticket: Arc<Ticket>,
    steps: Mutex<VecDeque<Step>>,
    distinct: OnceLock<Distinct>,
}

/// The texts of a call without repetitions. Each is known by its place in the list.
pub struct Distinct {
    /// For each distinct text, its first index in the call.
    pub firsts: Vec<usize>,
    /// The other indices of texts that occur again, by place.
    repetitions: HashMap<usize, Vec<usize>>,
    tokenized: Vec<OnceLock<TokenizedText>>,
    /// For each window, how many of its texts are not tokenized yet.
    untokenized: Vec<AtomicUsize>,
}

impl Job for Call {
    type Step = Step;

    fn priority(&self) -> Priority {
        if self.request.is_query {
            Priority::Query
        } else if self.is_single() {
            Priority::Single
        } else {
            Priority::Bulk
        }
    }

    fn is_single(&self) -> bool {
        self.request.texts.len() == 1
    }

    fn steps(&self) -> &Mutex<VecDeque<Step>> {
        &self.steps
    }

    fn has_ended(&self) -> bool {
        self.ticket.has_ended()
    }
}

impl Call {
    pub fn new(request: Request, is_streamed: bool, ticket: Arc<Ticket>) -> Self {
        Self {
            request,
            is_streamed,
            ticket,
            steps: Mutex::new(VecDeque::from([Step::Deduplicate])),
            distinct: OnceLock::new(),
        }
    }

    /// Does some work for the call, whose failure or panic ends it.
    pub fn run(&self, work: impl FnOnce() -> Result<()>) {
        if let Err(error) = guard::run(work) {
            self.ticket.end(Err(error));
        }
    }

    /// Finds equal texts. The first step of every call.
    ///
    /// # Errors
    /// There is no memory for the list.
    pub fn deduplicate(&self) -> Result<&Distinct> {
        let distinct = Distinct::of(&self.request.texts)?;
        let distinct = self.distinct.get_or_init(|| distinct);
        self.ticket.expect(distinct.firsts.len());
        Ok(distinct)
    }

    pub fn distinct(&self) -> &Distinct {
        self.distinct
            .get()
            .expect("deduplication is the first step of every call")
    }

    pub fn is_tokenized(&self, place: usize) -> bool {
        let distinct = self.distinct.get();
        distinct.is_some_and(|distinct| distinct.tokenized[place].get().is_some())
    }
}

impl Distinct {
    fn of(texts: &[Input]) -> Result<Self> {
        let mut places: HashMap<&Input, usize> = HashMap::new();
        places
            .try_reserve(texts.len())
            .map_err(|_| Error::no_memory(size_of_val(texts), TEXTS))?;
        let mut firsts = memory::room(texts.len(), TEXTS)?;
        let mut repetitions: HashMap<usize, Vec<usize>> = HashMap::new();
        for (index, text) in texts.iter().enumerate() {
            match places.entry(text) {
                Entry::Vacant(entry) => {
                    entry.insert(firsts.len());
                    firsts.push(index);
                }
                Entry::Occupied(entry) => {
                    let others = repetitions.entry(*entry.get()).or_default();
                    memory::reserve(others, 1, TEXTS)?;
                    others.push(index);
                }
            }
        }
        let count = firsts.len();
        let windows = (0..count).step_by(TEXTS_PER_WINDOW);
        let tokenized = (0..count).map(|_| OnceLock::new());
        Ok(Self {
            firsts,
            repetitions,
            tokenized: memory::collected(tokenized, TEXTS)?,
            untokenized: windows
                .map(|start| AtomicUsize::new(TEXTS_PER_WINDOW.min(count - start)))
                .collect(),
        })
    }

    /// The other indices of a text in the call.
    pub fn repetitions(&self, place: usize) -> &[usize] {
        self.repetitions.get(&place).map_or(&[], Vec::as_slice)
    }

    pub fn tokens(&self, place: usize) -> &TokenizedText {
        self.tokenized[place]
            .get()
            .expect("a window's batches are planned after its last text is tokenized")
    }

    pub fn set_tokens(&self, place: usize, tokens: TokenizedText) {
        self.tokenized[place].get_or_init(|| tokens);
    }

    /// Counts a step of tokenization as done. Gives the window's number if it was the window's last.
    pub fn finish_tokenization(&self, places: Range<usize>) -> Option<usize> {
        let window = places.start / TEXTS_PER_WINDOW;
        let before = self.untokenized[window].fetch_sub(places.len(), Ordering::AcqRel);
        (before == places.len()).then_some(window)
    }

    /// The steps that tokenize a window; none beyond the last one.
    pub fn tokenization(&self, window: usize) -> impl Iterator<Item = Step> + use<> {
        let Range { start, end } = self.window(window);
        let starts = (start..end).step_by(TEXTS_PER_STEP);
        starts.map(move |start| Step::Tokenize(start..end.min(start + TEXTS_PER_STEP)))
    }

    /// The batches of a window whose texts are tokenized, as places: longest first, or about in the order of the texts.
    pub fn batches(&self, window: usize, limits: Limits, in_order: bool) -> Vec<Vec<usize>> {
        let places = self.window(window);
        let lengths = places.clone().map(|place| self.tokens(place).ids.len());
        let mut batches = batch::plan(&lengths.collect::<Vec<_>>(), limits);
        if in_order {
            batches.sort_by_key(|batch| batch.iter().copied().min());
        }
        for place in batches.iter_mut().flatten() {
            *place += places.start;
        }
        batches
    }

    fn window(&self, index: usize) -> Range<usize> {
        let end = |index: usize| self.firsts.len().min(index * TEXTS_PER_WINDOW);
        end(index)..end(index + 1)
    }
}
