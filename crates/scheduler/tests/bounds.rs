//! Every bound from both sides: the last value that is taken and the first that is not.

use scheduler::{
    Brownout, DepthOptions, KvShape, PAGE, Refusal, Request, SamplingParams, Scheduler,
    SchedulerLimits,
};

fn shape(tiers: usize) -> KvShape {
    KvShape { layers: vec![1; tiers], every_row: false, by_seed: false }
}

fn request(prompt: usize, max_tokens: usize) -> Request {
    Request {
        id: 1,
        prompt: vec![5; prompt],
        max_tokens,
        min_tokens: 0,
        stop_ids: Vec::new(),
        sampling: SamplingParams::default(),
        depth_options: DepthOptions::default(),
        top: None,
        prompt_scores: None,
        embedding: None,
        routed_experts: false,
        adapter: 0,
        priority: 0,
        deadline: None,
    }
}

/// The field of the limit that a model of two recursions refuses, if any.
fn refused(limits: SchedulerLimits) -> Option<&'static str> {
    Scheduler::new(limits, shape(3), 2).err().map(|error| error.field)
}

#[test]
fn limits_are_kept_from_their_least_value_on() {
    type Set = fn(&mut SchedulerLimits, usize);
    let limits: [(&str, usize, Set); 6] = [
        ("queue_requests", 1, |l, n| l.queue_requests = n),
        ("max_seqs", 1, |l, n| l.max_seqs = n),
        ("max_batch_tokens", 1, |l, n| l.max_batch_tokens = n),
        ("prefill_chunk", 1, |l, n| l.prefill_chunk = n),
        ("context", 1, |l, n| l.context = n),
        // One page in each of three tiers.
        ("pages", 3, |l, n| l.pages = n),
    ];
    for (field, least, set) in limits {
        for (value, expected) in [(least - 1, Some(field)), (least, None)] {
            let mut limits = SchedulerLimits::default();
            set(&mut limits, value);
            assert_eq!(refused(limits), expected, "{field} = {value}");
        }
    }
    type SetLevel = fn(&mut Brownout, u32);
    let levels: [(&str, SetLevel); 3] = [
        ("brownout.floor", |b, n| b.floor = n),
        ("brownout.fall", |b, n| b.fall = n.into()),
        ("brownout.rise", |b, n| b.rise = n.into()),
    ];
    for (field, set) in levels {
        for (value, expected) in [(0, Some(field)), (1, None)] {
            let mut limits = SchedulerLimits::default();
            set(limits.brownout.get_or_insert_default(), value);
            assert_eq!(refused(limits), expected, "{field} = {value}");
        }
    }
    for (waiting, expected) in [(6, Some("brownout.waiting")), (7, None)] {
        let brownout = Some(Brownout { waiting, ease: 7, ..Brownout::default() });
        let limits = SchedulerLimits { brownout, ..SchedulerLimits::default() };
        assert_eq!(refused(limits), expected, "{waiting} may wait");
    }
}

/// Where all recursions run at once there is no depth to give up, and one tier for all of them.
#[test]
fn a_layout_that_recurs_at_once_gives_up_no_depth() {
    let with = |floor| SchedulerLimits {
        brownout: Some(Brownout { floor, ..Brownout::default() }),
        ..SchedulerLimits::default()
    };
    let field = |floor| Scheduler::at_once(with(floor), shape(2), 3).err().map(|e| e.field);
    assert_eq!((field(2), field(3)), (Some("brownout.floor"), None));
    for tiers in [1, 3] {
        let error = Scheduler::at_once(SchedulerLimits::default(), shape(tiers), 3).unwrap_err();
        assert_eq!((error.field, error.found), ("shape", tiers));
    }
    let error = Scheduler::at_once(SchedulerLimits::default(), shape(2), 0).unwrap_err();
    assert_eq!((error.field, error.found), ("recursions", 0));
}

/// What a fresh scheduler of two recursions, `pages` pages and a context of 100 says to `request`.
fn answer(pages: usize, request: Request) -> Option<String> {
    let limits = SchedulerLimits { pages, context: 100, ..SchedulerLimits::default() };
    let mut scheduler = Scheduler::new(limits, shape(3), 2).unwrap();
    match scheduler.submit(request, 0) {
        Ok(()) => None,
        Err(Refusal::Invalid { field, .. }) => Some(field.to_owned()),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn requests_are_taken_up_to_their_bounds() {
    let context = Some("prompt and max_tokens together".to_owned());
    let pages = Some("pages of prompt and max_tokens".to_owned());
    assert_eq!(answer(99, request(60, 40)), None);
    assert_eq!(answer(99, request(60, 41)), context);
    assert_eq!(answer(99, request(1, usize::MAX)), context);
    // Two pages a tier; the token drawn last is never a row, and who draws none has no such token.
    assert_eq!(answer(6, request(PAGE, PAGE + 1)), None);
    assert_eq!(answer(6, request(PAGE, PAGE + 2)), pages);
    assert_eq!(answer(6, request(2 * PAGE, 0)), None);
    assert_eq!(answer(6, request(2 * PAGE + 1, 0)), pages);
    for (from, expected) in [(3, None), (4, Some("prompt_scores".to_owned()))] {
        let scored = Request { prompt_scores: Some(from), ..request(4, 1) };
        assert_eq!(answer(99, scored), expected, "scores from {from} of 4");
    }
}

#[test]
fn depths_are_taken_up_to_their_bounds() {
    let plain = DepthOptions::default;
    for (options, expected) in [
        (DepthOptions { max_depth: Some(1), ..plain() }, None),
        (DepthOptions { max_depth: Some(9), ..plain() }, None),
        (DepthOptions { max_depth: Some(0), ..plain() }, Some("max_depth")),
        (DepthOptions { min_depth: 2, ..plain() }, None),
        (DepthOptions { min_depth: 3, ..plain() }, Some("min_depth")),
        (DepthOptions { min_depth: 1, max_depth: Some(1), ..plain() }, None),
        (DepthOptions { mean_depth: Some(1.0), ..plain() }, None),
        (DepthOptions { mean_depth: Some(2.0), min_depth: 2, ..plain() }, None),
        (DepthOptions { mean_depth: Some(1.99), min_depth: 2, ..plain() }, Some("mean_depth")),
        (DepthOptions { mean_depth: Some(f32::INFINITY), ..plain() }, Some("mean_depth")),
        (DepthOptions { threshold: -1e30, ..plain() }, None),
        (DepthOptions { threshold: f32::NEG_INFINITY, ..plain() }, Some("threshold")),
    ] {
        let asked = Request { depth_options: options, ..request(4, 4) };
        assert_eq!(answer(99, asked).as_deref(), expected, "{options:?}");
    }
}
