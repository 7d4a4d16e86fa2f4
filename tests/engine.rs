//! The engine as its callers see it: who is served when, what cancelling and closing do, what is counted.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use semantic_search_native::batch::{Limits, Padding};
use semantic_search_native::engine::{Activity, Embeddings, Engine, Rows, Sink, Ticket};
use semantic_search_native::model_dir::ModelDir;
use semantic_search_native::options::{Backend, Options};
use semantic_search_native::runtime::stop::Stop;
use semantic_search_native::runtime::{MakeWorker, Runtime, Tokens, Worker};
use semantic_search_native::tokenizer::Tokenizer;
use semantic_search_native::vector::{Finish, Vectors};
use semantic_search_native::{Error, Model, Result};

/// One worker for bulk work, or the two that MLX always has.
fn options_for(backend: Backend) -> Options {
    Options {
        threads: Some(1),
        ..setup::options_for(backend)
    }
}

fn model(backend: Backend) -> Model {
    Model::load(&setup::fixture("nomic_cls"), &options_for(backend)).unwrap()
}

/// Occupies all threads of a model of [`options_for`] until it is dropped: calls that are submitted meanwhile wait.
struct Occupation(#[allow(dead_code, reason = "held")] Vec<Sender<()>>);

impl Occupation {
    fn of(model: &Model) -> Self {
        struct Occupied {
            entered: Sender<()>,
            left: Receiver<()>,
        }
        impl Sink for Occupied {
            fn rows(&mut self, _: Rows) -> Result<()> {
                self.entered.send(()).unwrap();
                // An error, once nobody can send any more.
                let _ = self.left.recv();
                Ok(())
            }

            fn end(self: Box<Self>, outcome: Result<usize>) {
                outcome.unwrap();
            }
        }

        let (entered, has_entered) = mpsc::channel();
        // With the one for urgent work.
        let threads = if model.backend() == "mlx" { 3 } else { 2 };
        let occupy = |index| {
            let (keep, left) = mpsc::channel();
            let entered = entered.clone();
            // One batch, but no call of one text, which would share a thread with others.
            let texts = vec![format!("equal {index}"); 2];
            model.stream(
                setup::request(texts, true),
                Box::new(Occupied { entered, left }),
            );
            has_entered.recv().unwrap();
            keep
        };
        Self((0..threads).map(occupy).collect())
    }
}

/// Distinct texts of growing length.
fn texts(name: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|i| format!("{name} {i} {}", "word ".repeat(i % 97)))
        .collect()
}

type Outcome = Receiver<Result<Embeddings>>;

fn submit(model: &Model, texts: Vec<String>, is_query: bool) -> (Arc<Ticket>, Outcome) {
    let (sender, receiver) = mpsc::sync_channel(1);
    let reply =
        move |result: Result<Embeddings<_>>| sender.send(result.map(Embeddings::floats)).unwrap();
    let request = setup::request(texts, is_query);
    (model.submit(request, Box::new(reply)), receiver)
}

/// The names of calls in the order in which they end.
fn order_of_ends(
    model: &Model,
    calls: Vec<(&'static str, Vec<String>, bool)>,
) -> Vec<&'static str> {
    let (sender, receiver) = mpsc::channel();
    let count = calls.len();
    let occupation = Occupation::of(model);
    for (name, texts, is_query) in calls {
        let sender = sender.clone();
        let reply = move |result: Result<Embeddings<_>>| {
            result.unwrap();
            sender.send(name).unwrap();
        };
        model.submit(setup::request(texts, is_query), Box::new(reply));
    }
    drop(occupation);
    receiver.iter().take(count).collect()
}

#[test]
fn queries_and_single_texts_overtake_bulk_work() {
    for &backend in *setup::BACKENDS {
        let model = model(backend);
        let calls = vec![
            ("bulk", texts("bulk", 3000), false),
            ("queries", texts("query", 5), true),
            ("single", texts("single", 1), false),
        ];
        let order = order_of_ends(&model, calls);
        assert_eq!(order[2], "bulk", "{backend:?}: {order:?}");
    }
}

#[test]
fn queries_overtake_single_texts() {
    for &backend in *setup::BACKENDS {
        let model = model(backend);
        let mut calls: Vec<_> = (0..400)
            .map(|i| ("single", vec![format!("single {i}")], false))
            .collect();
        calls.push(("query", texts("query", 1), true));
        let order = order_of_ends(&model, calls);
        let place = order.iter().position(|&name| name == "query").unwrap();
        assert!(place < 300, "{backend:?}: {place}");
    }
}

/// Calls of one text share batches. Each gets its own vector, tokens and truncation; one that is cancelled harms no other.
#[test]
fn single_texts_that_wait_are_computed_together() {
    for &backend in *setup::BACKENDS {
        for is_query in [false, true] {
            let options = Options {
                max_tokens: Some(16),
                ..options_for(backend)
            };
            let model = Model::load(&setup::fixture("nomic_cls"), &options).unwrap();
            let all: Vec<String> = (0..400)
                .map(|i| format!("{i} {}", "word ".repeat(i % 20)))
                .collect();
            let alone: Vec<Embeddings> = all
                .iter()
                .map(|text| model.embed(vec![text.clone()], is_query).unwrap())
                .collect();
            let occupation = Occupation::of(&model);
            let before = model.activity();
            let calls: Vec<_> = all
                .iter()
                .map(|text| submit(&model, vec![text.clone()], is_query))
                .collect();
            drop(occupation);
            for (ticket, _) in calls.iter().step_by(7) {
                ticket.cancel();
            }
            for (index, ((_, outcome), alone)) in calls.iter().zip(&alone).enumerate() {
                match outcome.recv().unwrap() {
                    Ok(result) => {
                        setup::assert_equal("together", &result.vectors, &alone.vectors);
                        assert_eq!(
                            (result.tokens, &result.truncated),
                            (alone.tokens, &alone.truncated)
                        );
                    }
                    Err(error) => assert!(index % 7 == 0 && matches!(error, Error::Aborted)),
                }
            }
            let batches = model.activity().batches - before.batches;
            assert!(
                batches < 100,
                "{backend:?}: {batches} batches for 400 texts"
            );
            assert_eq!(model.activity().calls, 0);
        }
    }
}

/// Calls take turns: a small one does not wait for the whole of a large one.
#[test]
fn bulk_calls_share_the_workers() {
    for &backend in *setup::BACKENDS {
        let model = model(backend);
        let calls = vec![
            ("large", texts("large", 3000), false),
            ("small", texts("small", 100), false),
        ];
        assert_eq!(
            order_of_ends(&model, calls),
            ["small", "large"],
            "{backend:?}"
        );
    }
}

/// Windows, repetitions across windows and the way back into order.
#[test]
fn every_text_of_a_long_call_gets_its_own_vector() {
    for &backend in *setup::BACKENDS {
        let model = model(backend);
        let mut all = texts("long", 2500);
        all.extend(texts("long", 700));
        let (ticket, outcome) = submit(&model, all.clone(), false);
        let result = outcome.recv().unwrap().unwrap();
        let dimension = model.dir().dimension();
        assert_eq!(result.vectors.len(), all.len() * dimension);
        let row = |index: usize| &result.vectors[index * dimension..][..dimension];
        for index in [0, 1, 63, 64, 1023, 1024, 1500, 2047, 2048, 2499, 2500, 3199] {
            let alone = model.embed(vec![all[index].clone()], false).unwrap();
            setup::assert_equal(&format!("{backend:?} {index}"), row(index), &alone.vectors);
        }
        for index in 0..700 {
            assert_eq!(row(index), row(2500 + index));
        }
        assert_eq!(ticket.progress().done, all.len());
        assert_eq!(ticket.progress().tokens, result.tokens);
        assert_eq!(model.activity().calls, 0);
        assert!(model.activity().texts >= 2500 && model.activity().tokens >= result.tokens as u64);
    }
}

/// What a sink was given, and how many batches the model had computed by then.
enum Event {
    Rows(Rows, u64),
    End(Result<usize>),
}

struct Recorder {
    model: Weak<Model>,
    events: Sender<Event>,
}

impl Sink for Recorder {
    fn rows(&mut self, rows: Rows) -> Result<()> {
        let batches = self.model.upgrade().unwrap().activity().batches;
        self.events.send(Event::Rows(rows, batches)).unwrap();
        Ok(())
    }

    fn end(self: Box<Self>, outcome: Result<usize>) {
        self.events.send(Event::End(outcome)).unwrap();
    }
}

/// The longest silence of a stream, measured in batches, is one of each thread.
#[test]
fn vectors_leave_with_their_batch_and_are_those_of_a_whole_call() {
    const THREADS: usize = 2;
    for &backend in *setup::BACKENDS {
        let options = Options {
            threads: Some(THREADS),
            max_tokens: Some(32),
            ..setup::options_for(backend)
        };
        let model = Arc::new(Model::load(&setup::fixture("nomic_cls"), &options).unwrap());
        let mut all = texts("stream", 2500);
        all.extend(texts("stream", 700));
        let whole = model.embed(all.clone(), false).unwrap();
        let dimension = model.dir().dimension();
        let before = model.activity().batches;

        let (events, received) = mpsc::channel();
        let recorder = Recorder {
            model: Arc::downgrade(&model),
            events,
        };
        model.stream(setup::request(all.clone(), false), Box::new(recorder));
        let (mut seen, mut truncated, mut last, mut deliveries) =
            (vec![0; all.len()], vec![], before, 0);
        let outcome = loop {
            match received.recv().unwrap() {
                Event::End(outcome) => break outcome,
                Event::Rows(rows, batches) => {
                    // Each thread counts its batch before it delivers it.
                    assert!(
                        batches - last <= THREADS as u64 + 1,
                        "{backend:?}: {last} to {batches}"
                    );
                    (last, deliveries) = (batches, deliveries + 1);
                    let Vectors::Float32(vectors) = rows.vectors else {
                        panic!("not float32");
                    };
                    for (&index, row) in rows.indices.iter().zip(vectors.chunks_exact(dimension)) {
                        seen[index as usize] += 1;
                        let same = &whole.vectors[index as usize * dimension..][..dimension];
                        assert_eq!(row, same, "{backend:?} {index}");
                    }
                    truncated.extend(rows.truncated);
                }
            }
        };
        assert!(received.recv().is_err(), "nothing comes after the end");
        assert_eq!(outcome.unwrap(), whole.tokens);
        assert_eq!(seen, vec![1; all.len()], "{backend:?}");
        truncated.sort_unstable();
        assert!(!truncated.is_empty() && truncated == whole.truncated);
        assert_eq!(model.activity().batches - before, deliveries);
        assert!(deliveries > 50, "{backend:?}: {deliveries}");
    }
}

/// Who writes what is complete, file by file, is not kept waiting for the shortest text of a window. With one worker, since
/// two may overtake each other.
#[test]
fn vectors_of_a_stream_come_in_the_order_of_the_texts() {
    let options = Options {
        threads: Some(1),
        ..setup::options()
    };
    let model = Arc::new(Model::load(&setup::fixture("nomic_cls"), &options).unwrap());
    let (events, received) = mpsc::channel();
    let recorder = Recorder {
        model: Arc::downgrade(&model),
        events,
    };
    model.stream(
        setup::request(texts("order", 900), false),
        Box::new(recorder),
    );
    let firsts: Vec<u32> = received
        .iter()
        .filter_map(|event| match event {
            Event::Rows(rows, _) => rows.indices.into_iter().min(),
            Event::End(_) => None,
        })
        .collect();
    assert!(firsts.len() > 50 && firsts.is_sorted(), "{firsts:?}");
}

/// A sink that cannot keep what it is given ends its call, and no other.
#[test]
fn a_sink_that_fails_ends_its_call() {
    struct Full(Sender<Result<usize>>, usize);
    impl Sink for Full {
        fn rows(&mut self, _: Rows) -> Result<()> {
            self.1 += 1;
            assert_eq!(self.1, 1, "nothing comes after an error");
            Err(Error::InferenceFailed {
                reason: "full".to_owned(),
                source: None,
            })
        }

        fn end(self: Box<Self>, outcome: Result<usize>) {
            self.0.send(outcome).unwrap();
        }
    }
    for &backend in *setup::BACKENDS {
        let model = model(backend);
        let (sender, outcome) = mpsc::channel();
        model.stream(
            setup::request(texts("full", 3000), false),
            Box::new(Full(sender, 0)),
        );
        let error = outcome.recv().unwrap().unwrap_err();
        assert!(error.to_string().contains("full"), "{error}");
        assert_eq!(model.activity().calls, 0);
        model.embed(texts("other", 3), false).unwrap();
    }
}

#[test]
fn progress_grows() {
    for &backend in *setup::BACKENDS {
        let model = model(backend);
        let (ticket, outcome) = submit(&model, texts("progress", 2000), false);
        assert_eq!(model.activity().calls, 1);
        let mut seen = vec![0];
        while outcome.try_recv().is_err() {
            seen.push(ticket.progress().done);
            std::thread::sleep(Duration::from_micros(200));
        }
        assert!(seen.is_sorted());
        assert!(
            seen.iter().any(|&done| done > 0 && done < 2000),
            "{backend:?}"
        );
        assert_eq!(ticket.progress().done, 2000);
    }
}

#[test]
fn a_cancelled_call_ends_and_harms_no_other() {
    for &backend in *setup::BACKENDS {
        let model = model(backend);
        let expected = model.embed(texts("other", 200), false).unwrap();

        let (running, ran) = submit(&model, texts("running", 5000), false);
        let (_, other) = submit(&model, texts("other", 200), false);
        let (queued, waited) = submit(&model, texts("queued", 5000), false);
        queued.cancel();
        assert!(matches!(waited.recv().unwrap(), Err(Error::Aborted)));
        while running.progress().done == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
        running.cancel();
        assert!(matches!(ran.recv().unwrap(), Err(Error::Aborted)));
        running.cancel();
        assert!(running.progress().done < 5000, "{backend:?}");

        let result = other.recv().unwrap().unwrap();
        setup::assert_equal(&format!("{backend:?}"), &result.vectors, &expected.vectors);
        let (ended, end) = submit(&model, texts("ended", 1), false);
        end.recv().unwrap().unwrap();
        // Nobody is there to be told: a call replies once.
        ended.cancel();
        assert_eq!(model.activity().calls, 0);
    }
}

/// What is enough for a few operators and short texts on a busy machine, and not for a long batch of the deep model.
const SOON: Duration = Duration::from_mins(1);

/// A model that is computing a batch which takes minutes, with one worker for bulk work; and that call.
fn busy_model(backend: Backend) -> (Model, Arc<Ticket>, Outcome) {
    let folder = tempfile::tempdir().unwrap();
    setup::write_deep_model(folder.path());
    let options = Options {
        threads: Some(1),
        max_tokens: Some(8192),
        ..setup::options_for(backend)
    };
    let model = Model::load(folder.path(), &options).unwrap();
    // Minutes of work for each text, whose single operators take a second at most: that is how often it can be interrupted.
    let words = if backend == Backend::Mlx { 1000 } else { 4000 };
    let long = |name: &str| format!("{name} {}", "word ".repeat(words));
    let (ticket, outcome) = submit(&model, vec![long("a"), long("b"), long("c")], false);
    // Tokenizing takes some milliseconds.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(model.activity().calls, 1, "{backend:?}: it must take long");
    (model, ticket, outcome)
}

/// Not only its answer: the next call need not wait for the end of its batch, and the worker is as good as before.
#[test]
fn what_a_cancelled_call_computes_is_interrupted() {
    for &backend in *setup::BACKENDS {
        let (model, ticket, outcome) = busy_model(backend);
        ticket.cancel();
        assert!(matches!(outcome.recv().unwrap(), Err(Error::Aborted)));
        let (_, next) = submit(&model, texts("next", 20), false);
        let result = next.recv_timeout(SOON).expect("the worker is free");
        let Activity { texts: count, .. } = model.activity();
        assert_eq!(count, 20, "{backend:?}: nothing of the cancelled call");
        let alone = model.embed(texts("next", 20), false).unwrap();
        assert_eq!(result.unwrap().vectors, alone.vectors, "{backend:?}");
    }
}

#[test]
fn closing_interrupts_what_is_computed() {
    for &backend in *setup::BACKENDS {
        let (model, _, outcome) = busy_model(backend);
        let (closed, has_closed) = mpsc::channel();
        std::thread::spawn(move || {
            model.close();
            closed.send(()).unwrap();
        });
        assert!(matches!(outcome.recv().unwrap(), Err(Error::Closed)));
        has_closed
            .recv_timeout(SOON)
            .expect("its threads have ended");
    }
}

/// As an environment of Node.js does that is torn down.
#[test]
fn who_closes_and_cannot_wait_does_not_wait_long() {
    for &backend in *setup::BACKENDS {
        let (model, _, outcome) = busy_model(backend);
        let start = std::time::Instant::now();
        model.close_soon();
        assert!(matches!(outcome.recv().unwrap(), Err(Error::Closed)));
        assert!(start.elapsed() < SOON);
        // The threads may still be there, and this waits for them.
        model.close();
    }
}

#[test]
fn closing_ends_every_call() {
    for &backend in *setup::BACKENDS {
        let model = model(backend);
        let outcomes: Vec<Outcome> = (0..20)
            .map(|call| submit(&model, texts("close", 1 + call * 100), call % 3 == 0).1)
            .collect();
        model.close();
        let closed = outcomes
            .iter()
            .map(|outcome| outcome.recv().unwrap())
            .inspect(|result| assert!(matches!(result, Ok(_) | Err(Error::Closed))))
            .filter(Result::is_err)
            .count();
        assert!(closed > 0, "{backend:?}");
        let (_, late) = submit(&model, texts("late", 1), true);
        assert!(matches!(late.recv().unwrap(), Err(Error::Closed)));
        assert_eq!(model.activity().calls, 0);
    }
}

/// Work begins before all workers are there, and the model may be gone before they are.
#[test]
fn the_first_worker_is_enough() {
    for &backend in *setup::BACKENDS {
        let options = Options {
            threads: Some(4),
            ..setup::options_for(backend)
        };
        for round in 0..10 {
            let model = Model::load(&setup::fixture("nomic_cls"), &options).unwrap();
            let (_, bulk) = submit(&model, texts("early", 20), false);
            if round % 2 == 0 {
                model.embed(vec!["query".to_owned()], true).unwrap();
                bulk.recv().unwrap().unwrap();
            }
            model.close();
        }
    }
}

#[test]
fn a_memory_budget_makes_batches_smaller_and_changes_no_vector() {
    for &backend in *setup::BACKENDS {
        let words = vec!["word ".repeat(20); 40];
        let texts: Vec<String> = words
            .iter()
            .enumerate()
            .map(|(i, text)| format!("{i} {text}"))
            .collect();
        let embed = |memory_budget| {
            let options = Options {
                memory_budget,
                ..setup::options_for(backend)
            };
            let model = Model::load(&setup::fixture("nomic_cls"), &options).unwrap();
            let vectors = model.embed(texts.clone(), false).unwrap().vectors;
            (vectors, model.activity().batches)
        };
        let (roomy, few) = embed(None);
        let (tight, many) = embed(Some(1));
        assert_eq!(many, 40, "{backend:?}: a text each");
        assert!(few < many, "{backend:?}: {few}");
        setup::assert_equal(&format!("{backend:?}"), &tight, &roomy);
    }
}

/// Many callers, calls of all kinds, cancelled at random: every one of them is answered once, and rightly.
#[test]
fn a_storm_of_calls_is_answered() {
    for &backend in *setup::BACKENDS {
        let model = model(backend);
        let pool = texts("storm", 40);
        let expected = model.embed(pool.clone(), false).unwrap().vectors;
        let dimension = model.dir().dimension();
        std::thread::scope(|scope| {
            for caller in 0..8 {
                let (model, pool, expected) = (&model, &pool, &expected);
                scope.spawn(move || {
                    let mut random = rand::rngs::StdRng::seed_from_u64(caller);
                    for _ in 0..60 {
                        let chosen: Vec<usize> = (0..random.random_range(0..30))
                            .map(|_| random.random_range(0..pool.len()))
                            .collect();
                        let texts = chosen.iter().map(|&index| pool[index].clone()).collect();
                        let (ticket, outcome) = submit(model, texts, false);
                        let is_cancelled = random.random_bool(0.3);
                        if is_cancelled {
                            ticket.cancel();
                        }
                        match outcome.recv().unwrap() {
                            Ok(result) => {
                                for (row, index) in
                                    result.vectors.chunks_exact(dimension).zip(chosen)
                                {
                                    let same = &expected[index * dimension..][..dimension];
                                    setup::assert_equal("storm", row, same);
                                }
                            }
                            Err(error) => assert!(is_cancelled && matches!(error, Error::Aborted)),
                        }
                    }
                });
            }
        });
        assert_eq!(model.activity().calls, 0);
    }
}

/// The limit is the process's, so a process of its own has it: room for the stacks of two threads, where five are wanted.
#[cfg(target_os = "linux")]
#[test]
fn a_thread_that_is_refused_ends_those_before_it() {
    const IS_CHILD: &str = "SEMANTIC_SEARCH_TEST_IS_CHILD";
    const STACK: usize = 512 << 20;
    struct Idle(Arc<()>);
    impl Worker for Idle {
        fn forward(&mut self, _: &[Tokens], _: &Arc<Stop>) -> Result<Vec<f32>> {
            unreachable!("nothing is submitted, {} know", Arc::strong_count(&self.0))
        }
    }
    if std::env::var_os(IS_CHILD).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "a_thread_that_is_refused_ends_those_before_it"]);
        child.env(IS_CHILD, "1");
        child.env("RUST_MIN_STACK", STACK.to_string());
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
        return;
    }

    let alive = Arc::new(());
    let worker = || -> MakeWorker {
        let alive = Arc::clone(&alive);
        Box::new(|| Ok(Box::new(Idle(alive))))
    };
    let runtime = Runtime {
        backend: "none",
        is_gpu: false,
        dtype: "f32",
        limits: Limits {
            budget_tokens: 1,
            padding: Padding::ToLongest(1.0),
            budget_bytes: 1,
            token_bytes: 1,
            score_bytes: 0,
        },
        workers: (0..4).map(|_| worker()).collect(),
        urgent_worker: worker(),
        adapter: None,
    };
    let dir = ModelDir::read(&setup::fixture("nomic_cls"), &Options::default()).unwrap();
    let tokenizer = Tokenizer::load(&dir).unwrap();

    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').next().unwrap().parse().unwrap();
    // SAFETY: has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let most = (pages * page + 5 * STACK / 2) as libc::rlim_t;
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // SAFETY: the limit is valid for the call.
    let refused = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    assert_eq!(refused, 0);

    let error = Engine::start(
        runtime,
        tokenizer,
        Finish {
            pooled: 8,
            matryoshka: None,
            normalize: true,
        },
    )
    .err()
    .unwrap();
    assert_eq!(error.code(), "RESOURCE_EXHAUSTED", "{error}");
    for _ in 0..100 {
        if Arc::strong_count(&alive) == 1 {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{} workers live on", Arc::strong_count(&alive) - 1);
}
