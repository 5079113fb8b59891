//! Single decisions of the scheduler, one by one.

use scheduler::{
    After, Brownout, CodaChunk, DepthOptions, Done, Ended, Finish, KvShape, Pooling, Refusal,
    Request, SamplingParams, Scheduler, SchedulerLimits, SlotId, Tick,
};

/// A model of two recursions, with one layer in each tier.
fn scheduler(limits: SchedulerLimits) -> Scheduler {
    Scheduler::new(limits, KvShape { layers: vec![1, 1, 1], every_row: false, by_seed: false }, 2)
        .unwrap()
}

fn request(id: u64, prompt: std::ops::Range<u32>, max_tokens: usize) -> Request {
    Request {
        id,
        prompt: prompt.collect(),
        max_tokens,
        min_tokens: 0,
        stop_ids: vec![7],
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

/// The request in a slot.
fn in_slot(s: &Scheduler, slot: SlotId) -> u64 {
    s.running(slot).unwrap().sequence().request().id
}

/// Takes all due rows through their recursion, each to its cap.
fn recur(s: &mut Scheduler, tick: &Tick) {
    for chunk in &tick.prelude {
        s.append(chunk.slot, 0, chunk.count).unwrap();
    }
    for due in &tick.recur {
        let (sequence, chunk) = {
            let running = s.running(due.slot).unwrap();
            (running.sequence(), *running.chunk().unwrap())
        };
        let deep = |least: usize| {
            (chunk.first..chunk.first + chunk.count)
                .filter(|&p| sequence.cap_of(p) as usize >= least)
                .count()
        };
        let (took, going) = (deep(due.recursion + 1), deep(due.recursion + 2));
        s.append(due.slot, 1 + due.recursion, took).unwrap();
        s.recurred(due.slot, took, going).unwrap();
    }
}

fn complete(s: &mut Scheduler, chunk: CodaChunk, token: u32, now_us: u64) -> After {
    let sequence = s.running(chunk.slot).unwrap().sequence();
    let depths: Vec<u32> =
        (chunk.first..chunk.first + chunk.count).map(|p| sequence.cap_of(p)).collect();
    s.completed(chunk.slot, &depths, chunk.draws.then_some(token), now_us).unwrap()
}

/// One tick in which everybody who draws draws `token`.
fn tick(s: &mut Scheduler, token: u32, now_us: u64) -> (Tick, Vec<Ended>) {
    let tick = s.plan(now_us);
    recur(s, &tick);
    let mut ended = tick.ended.clone();
    for l in s.ready_for_coda() {
        if let After::Ended(end) = complete(s, l, token, now_us) {
            ended.push(end);
        }
    }
    s.check().unwrap();
    (tick, ended)
}

fn ticks(s: &mut Scheduler, count: usize) -> Vec<(Tick, Vec<Ended>)> {
    (0..count).map(|_| tick(s, 9, 0)).collect()
}

fn until_idle(s: &mut Scheduler, token: u32) -> Vec<(u64, Done)> {
    let mut done = Vec::new();
    for _ in 0..10_000 {
        if s.is_idle() {
            return done;
        }
        done.extend(tick(s, token, 0).1.into_iter().map(|e| (e.request.id, e.done)));
    }
    panic!("still busy");
}

fn refusal(s: &mut Scheduler, request: Request) -> String {
    s.submit(request, 0).unwrap_err().to_string()
}

#[test]
fn what_can_never_run_is_refused_by_field() {
    let mut s = scheduler(SchedulerLimits {
        pages: 9,
        context: 100,
        queue_requests: 1,
        max_seqs: 1,
        ..SchedulerLimits::default()
    });
    let with = |depth_options| Request { depth_options, ..request(1, 0..4, 4) };
    let cases = [
        (request(1, 0..0, 4), "prompt is empty, expected at least one token"),
        (
            request(1, 0..60, 41),
            "prompt and max_tokens together is 101 tokens, expected at most 100, the context",
        ),
        (
            request(1, 0..40, 10),
            "pages of prompt and max_tokens is 12, expected at most 9, the pool: \
             ask for fewer tokens",
        ),
        (
            with(DepthOptions { max_depth: Some(0), ..DepthOptions::default() }),
            "max_depth is 0, expected at least 1",
        ),
        (
            with(DepthOptions { min_depth: 3, ..DepthOptions::default() }),
            "min_depth is 3, expected at most 2, the deepest allowed",
        ),
        (
            with(DepthOptions { min_depth: 2, max_depth: Some(1), ..DepthOptions::default() }),
            "min_depth is 2, expected at most 1, the deepest allowed",
        ),
        (
            with(DepthOptions { threshold: f32::NAN, ..DepthOptions::default() }),
            "threshold is NaN, expected a finite number",
        ),
        (
            with(DepthOptions { mean_depth: Some(0.9), ..DepthOptions::default() }),
            "mean_depth is 0.9, expected at least 1, which a token may always take",
        ),
        (
            with(DepthOptions { mean_depth: Some(1.9), min_depth: 2, ..DepthOptions::default() }),
            "mean_depth is 1.9, expected at least 2, which a token may always take",
        ),
        (
            with(DepthOptions { mean_depth: Some(f32::NAN), ..DepthOptions::default() }),
            "mean_depth is NaN, expected at least 1, which a token may always take",
        ),
    ];
    for (request, message) in cases {
        assert_eq!(refusal(&mut s, request), message);
    }
    // 48 rows: the token drawn last is never one.
    s.submit(request(1, 0..40, 9), 0).unwrap();
    assert_eq!(
        refusal(&mut s, request(1, 0..4, 1)),
        "id is 1, expected one that no request has that waits or runs"
    );
    // The first has the slot as soon as a tick begins; the second waits, and the third may not.
    s.submit(request(2, 0..30, 1), 0).unwrap();
    let full = "the queue holds 1 requests and 30 tokens, its bound; try again in 1 s";
    assert_eq!(refusal(&mut s, request(3, 0..4, 1)), full);
    tick(&mut s, 9, 0);
    assert_eq!(refusal(&mut s, request(3, 0..4, 1)), full);
    assert_eq!(s.gauges().refused, 2);
    s.drain();
    assert_eq!(s.submit(request(3, 0..4, 1), 0), Err(Refusal::Draining));
    assert_eq!(until_idle(&mut s, 9).len(), 2, "what was accepted runs to its end");
}

#[test]
fn limits_that_cannot_be_kept() {
    let error = |limits, layers: &[usize]| {
        let shape = KvShape { layers: layers.to_vec(), every_row: false, by_seed: false };
        Scheduler::new(limits, shape, 2).unwrap_err().to_string()
    };
    let base = SchedulerLimits::default;
    assert_eq!(
        error(SchedulerLimits { max_batch_tokens: 0, ..base() }, &[1, 1, 1]),
        "limit max_batch_tokens is 0, expected at least 1: change it"
    );
    assert_eq!(
        error(SchedulerLimits { pages: 2, ..base() }, &[1, 1, 1]),
        "limit pages is 2, expected at least 3: change it"
    );
    let shape = "limit shape is 2, expected 3 tiers, one more than recursions: change it";
    assert_eq!(error(base(), &[1, 1]), shape);
    let brownout = Some(Brownout { waiting: 1, ease: 2, ..Brownout::default() });
    let text = "limit brownout.waiting is 1, expected at least 2: change it";
    assert_eq!(error(SchedulerLimits { brownout, ..base() }, &[1, 1, 1]), text);
}

#[test]
fn a_prompt_gets_rows_although_newest_tokens_fill_the_tick() {
    let mut s = scheduler(SchedulerLimits {
        max_batch_tokens: 3,
        prefill_chunk: 8,
        ..SchedulerLimits::default()
    });
    for id in 0..3 {
        s.submit(request(id, id as u32..id as u32 + 1, 50), 0).unwrap();
    }
    ticks(&mut s, 6);
    s.submit(request(9, 0..30, 1), 0).unwrap();
    // Three rows each two ticks, fewer where a page ends.
    let done = ticks(&mut s, 24);
    assert!(done.iter().all(|(tick, _)| tick.prelude.iter().map(|e| e.count).sum::<usize>() <= 6));
    assert!(done.iter().any(|(_, ended)| ended.iter().any(|e| e.request.id == 9)));
    assert_eq!(s.gauges().tokens.0, 33);
}

/// A newcomer waits while the prompts before it fill ticks, but not for rows that are under way.
#[test]
fn who_comes_gets_a_slot_when_those_before_leave_rows_for_it() {
    let mut s = scheduler(SchedulerLimits {
        max_batch_tokens: 16,
        prefill_chunk: 16,
        ..SchedulerLimits::default()
    });
    s.submit(request(1, 0..64, 4), 0).unwrap();
    s.submit(request(2, 100..104, 4), 0).unwrap();
    let admitted: Vec<Vec<SlotId>> =
        ticks(&mut s, 2).into_iter().map(|(tick, _)| tick.admitted).collect();
    assert_eq!(admitted, [vec![0], vec![1]], "the first chunk is in its second recursion");
}

#[test]
fn chunks_end_on_pages_and_no_more_rows_than_allowed() {
    let mut s = scheduler(SchedulerLimits {
        max_batch_tokens: 40,
        prefill_chunk: 24,
        ..SchedulerLimits::default()
    });
    s.submit(request(1, 0..50, 1), 0).unwrap();
    s.submit(request(2, 100..190, 1), 0).unwrap();
    let first_rows: Vec<Vec<(SlotId, usize, usize)>> = ticks(&mut s, 5)
        .iter()
        .map(|(tick, _)| tick.prelude.iter().map(|e| (e.slot, e.first, e.count)).collect())
        .collect();
    // Two recursions: a chunk takes two ticks.
    let expected = [
        vec![(0, 0, 16), (1, 0, 16)],
        vec![],
        vec![(0, 16, 16), (1, 16, 16)],
        vec![],
        vec![(0, 32, 18), (1, 32, 16)],
    ];
    assert_eq!(first_rows, expected);
}

#[test]
fn ready_rows_wait_for_company_but_not_long() {
    let mut s =
        scheduler(SchedulerLimits { coda_batch: 2, coda_wait: 3, ..SchedulerLimits::default() });
    let shallow = DepthOptions { max_depth: Some(1), ..DepthOptions::default() };
    s.submit(Request { depth_options: shallow, ..request(1, 0..1, 9) }, 0).unwrap();
    s.submit(request(2, 5..6, 9), 0).unwrap();
    let first = s.plan(0);
    recur(&mut s, &first);
    assert_eq!(s.ready_for_coda(), [], "one row is ready, another is still recurring");
    let second = s.plan(0);
    recur(&mut s, &second);
    let both: Vec<SlotId> = s.ready_for_coda().iter().map(|l| l.slot).collect();
    assert_eq!(both, [0, 1], "two rows are enough");
    for slot in both {
        s.completed(slot, &[1 + slot as u32], Some(9), 0).unwrap();
    }
    // The second one pauses on its way: nobody turns, the first need not wait.
    s.pause(2);
    let third = s.plan(0);
    recur(&mut s, &third);
    assert_eq!(s.ready_for_coda().len(), 1);
}

#[test]
fn nobody_waits_for_company_longer_than_allowed() {
    for (coda_wait, expected) in
        [(0, [vec![0], vec![0, 1], vec![0, 2]]), (1, [vec![], vec![0, 1], vec![]])]
    {
        let mut s =
            scheduler(SchedulerLimits { coda_batch: 9, coda_wait, ..SchedulerLimits::default() });
        let shallow = DepthOptions { max_depth: Some(1), ..DepthOptions::default() };
        s.submit(Request { depth_options: shallow, ..request(1, 0..1, 9) }, 0).unwrap();
        // One of the others is always on its way, so that nobody leaves for want of company to
        // come.
        let mut left = Vec::new();
        for id in 2..5 {
            s.submit(request(id, 5..6, 9), 0).unwrap();
            let tick = s.plan(0);
            recur(&mut s, &tick);
            let ready = s.ready_for_coda();
            left.push(ready.iter().map(|l| l.slot).collect::<Vec<_>>());
            ready.into_iter().for_each(|l| drop(complete(&mut s, l, 9, 0)));
        }
        assert_eq!(left, expected, "wait {coda_wait}");
    }
}

#[test]
fn a_mean_needs_all_rows_and_the_last_row_is_computed_in_any_case() {
    let mut s = scheduler(SchedulerLimits::default());
    s.submit(request(1, 0..40, 3), 0).unwrap();
    until_idle(&mut s, 9);
    let pooled = |id, pooling| Request { embedding: Some(pooling), ..request(id, 0..40, 0) };
    s.submit(pooled(2, Pooling::Mean), 0).unwrap();
    s.submit(pooled(3, Pooling::Last), 0).unwrap();
    s.submit(Request { prompt_scores: Some(17), ..pooled(4, Pooling::Last) }, 0).unwrap();
    let done = until_idle(&mut s, 9);
    let cached = |id| done.iter().find(|(i, _)| *i == id).unwrap().1.usage.cached;
    assert_eq!([2, 3, 4].map(cached), [0, 32, 16]);
}

#[test]
fn a_known_beginning_is_not_computed_again() {
    let mut s = scheduler(SchedulerLimits::default());
    s.submit(request(1, 0..40, 3), 0).unwrap();
    assert_eq!(until_idle(&mut s, 9)[0].1.usage.cached, 0);
    assert_eq!(s.gauges().pages_cached, 6);
    s.submit(request(2, 0..40, 3), 0).unwrap();
    let other = DepthOptions { max_depth: Some(1), ..DepthOptions::default() };
    s.submit(Request { depth_options: other, ..request(3, 0..40, 3) }, 0).unwrap();
    s.submit(Request { prompt_scores: Some(0), ..request(4, 0..40, 3) }, 0).unwrap();
    // The token at 17 is scored by the row before it, the one at 16 by a row of the first block.
    s.submit(Request { prompt_scores: Some(17), ..request(5, 0..40, 3) }, 0).unwrap();
    s.submit(Request { prompt_scores: Some(16), ..request(6, 0..40, 3) }, 0).unwrap();
    let done = until_idle(&mut s, 9);
    let cached = |id| done.iter().find(|(i, _)| *i == id).unwrap().1.usage;
    assert_eq!(
        [2, 3, 4, 5, 6].map(|id| cached(id).cached),
        [32, 0, 0, 16, 0],
        "not for another depth_options, not where scores are asked for"
    );
    // 8 rows of the prompt and 2 of the text.
    assert_eq!(
        (cached(2).recursion_steps, cached(2).dense_steps, cached(2).generated),
        (20, 20, 3)
    );
    assert_eq!((cached(3).recursion_steps, cached(3).dense_steps), (42, 84));
    assert_eq!(s.gauges().prefix_tokens, (120 + 17 + 16, 32 + 16));
    // The answer is known too, for the next turn of the talk.
    let text = [(0..40).collect(), vec![9; 8], vec![1; 9]].concat();
    let talk =
        |id, max_tokens| Request { prompt: text[..40].to_vec(), ..request(id, 0..1, max_tokens) };
    s.submit(talk(5, 9), 0).unwrap();
    until_idle(&mut s, 9);
    s.submit(Request { prompt: text, ..request(6, 0..1, 1) }, 0).unwrap();
    assert_eq!(until_idle(&mut s, 9)[0].1.usage.cached, 48);
    // Three blocks at depth 2 and two at depth 1 are kept, a page a tier.
    assert_eq!(s.gauges().pages_cached, 3 * 3 + 2 * 2);
    assert_eq!(s.pages().free() + 13, s.pages().pages());
}

#[test]
fn where_rows_depend_on_the_seed_only_equal_seeds_share() {
    let shape = KvShape { layers: vec![1, 1, 1], every_row: false, by_seed: true };
    let mut s = Scheduler::new(SchedulerLimits::default(), shape, 2).unwrap();
    let mut cached = Vec::new();
    for (id, seed) in [(1, 4), (2, 5), (3, 4), (4, 5)] {
        let sampling = SamplingParams { seed, ..SamplingParams::default() };
        s.submit(Request { sampling, ..request(id, 0..40, 1) }, 0).unwrap();
        cached.push(until_idle(&mut s, 9)[0].1.usage.cached);
    }
    assert_eq!(cached, [0, 0, 32, 32]);
}

#[test]
fn rows_with_a_cap_of_their_own_are_not_taken_from_others() {
    let mut s = scheduler(SchedulerLimits { max_seqs: 1, ..SchedulerLimits::default() });
    let thrifty = DepthOptions { mean_depth: Some(1.0), ..DepthOptions::default() };
    s.submit(Request { depth_options: thrifty, ..request(1, 0..20, 60) }, 0).unwrap();
    while s.running(0).is_none_or(|r| r.sequence().generated().len() < 30) {
        tick(&mut s, 9, 0);
    }
    // Another asks for the same text at full depth, and takes the slot.
    let prompt = [(0..20).collect(), vec![9; 30]].concat();
    s.submit(Request { prompt, priority: 1, ..request(2, 0..1, 1) }, 0).unwrap();
    let first_rows: Vec<usize> =
        (0..8).flat_map(|_| tick(&mut s, 9, 0).0.prelude).map(|e| e.first).collect();
    assert_eq!(in_slot(&s, 0), 1);
    // Both find the block of the prompt; the first computes its text again although another one's
    // is there.
    assert_eq!(first_rows[..2], [16, 16]);
}

#[test]
fn a_request_that_just_fits_takes_back_what_is_cached_of_it() {
    // 32 rows may take all 6 pages. Of the first block every other row goes deep: the cache holds
    // half-filled pages of it, which ask for room for copies that is not there.
    let mut s =
        scheduler(SchedulerLimits { pages: 6, prefill_chunk: 16, ..SchedulerLimits::default() });
    let depth = |p: usize| if p < 16 { p % 2 * 2 } else { 2 };
    s.submit(request(1, 0..30, 3), 0).unwrap();
    for _ in 0..20 {
        let tick = s.plan(0);
        assert_eq!(tick.stalled, []);
        for e in &tick.prelude {
            s.append(e.slot, 0, e.count).unwrap();
        }
        for t in &tick.recur {
            let f = *s.running(t.slot).unwrap().chunk().unwrap();
            let took = (f.first..f.first + f.count).filter(|&p| depth(p) > t.recursion).count();
            s.append(t.slot, 1 + t.recursion, took).unwrap();
            s.recurred(t.slot, took, took).unwrap();
        }
        for l in s.ready_for_coda() {
            let depths: Vec<u32> = (l.first..l.first + l.count).map(|p| depth(p) as u32).collect();
            s.completed(l.slot, &depths, l.draws.then_some(9), 0).unwrap();
        }
        s.check().unwrap();
    }
    assert!(s.is_idle());
    assert_eq!(s.gauges().tokens, (30, 3));
}

#[test]
fn the_least_important_gives_its_pages() {
    let mut s = scheduler(SchedulerLimits { pages: 24, ..SchedulerLimits::default() });
    for (id, priority) in [(1, 0), (2, 1), (3, 0)] {
        s.submit(Request { priority, ..request(id, id as u32 * 100..id as u32 * 100 + 10, 40) }, 0)
            .unwrap();
    }
    let mut preempted = Vec::new();
    let mut ended = Vec::new();
    while !s.is_idle() {
        let (tick, end) = tick(&mut s, 9, 0);
        preempted.extend(tick.preempted.iter().map(|&(_, id)| id));
        ended.extend(
            end.into_iter()
                .map(|e| (e.request.id, e.done.usage.preemptions, e.done.usage.generated)),
        );
    }
    assert_eq!(preempted, [3], "the last of the lowest");
    assert_eq!(s.gauges().preemptions, 1);
    assert_eq!(ended, [(2, 0, 40), (1, 0, 40), (3, 1, 40)]);
}

#[test]
fn a_paused_sequence_is_the_first_to_give_its_pages() {
    let mut s = scheduler(SchedulerLimits { pages: 12, ..SchedulerLimits::default() });
    for id in 1..4 {
        s.submit(request(id, id as u32 * 100..id as u32 * 100 + 10, 20), 0).unwrap();
    }
    ticks(&mut s, 4);
    s.pause(1);
    let mut preempted = Vec::new();
    for (tick, ended) in ticks(&mut s, 80) {
        preempted.extend(tick.preempted.iter().map(|&(_, id)| id));
        assert!(ended.iter().all(|e| e.request.id != 1));
    }
    assert_eq!(preempted, [1]);
    assert_eq!((s.gauges().waiting, s.gauges().running, s.has_work()), (1, 0, false));
    s.unpause(1);
    assert!(s.has_work());
    let done = until_idle(&mut s, 9);
    assert_eq!((done[0].1.finish.clone(), done[0].1.usage.generated), (Finish::Length, 20));
}

#[test]
fn a_pause_keeps_a_slot_for_a_while() {
    let mut s =
        scheduler(SchedulerLimits { max_seqs: 1, pause_grace: 5, ..SchedulerLimits::default() });
    s.submit(request(1, 0..4, 20), 0).unwrap();
    s.submit(request(2, 50..54, 20), 0).unwrap();
    ticks(&mut s, 3);
    s.pause(1);
    let lost = ticks(&mut s, 9).iter().position(|(tick, _)| tick.preempted == [(0, 1)]);
    assert_eq!(lost, Some(5));
    assert_eq!(in_slot(&s, 0), 2);
}

#[test]
fn higher_priority_takes_a_slot_and_what_was_there_loses_nothing_of_its_text() {
    let mut s = scheduler(SchedulerLimits { max_seqs: 2, ..SchedulerLimits::default() });
    s.submit(request(1, 0..20, 6), 0).unwrap();
    s.submit(request(2, 50..70, 6), 0).unwrap();
    ticks(&mut s, 6);
    let before = s.running(1).unwrap().sequence().generated().to_vec();
    s.submit(Request { priority: 1, ..request(3, 90..95, 2) }, 0).unwrap();
    s.submit(request(4, 95..99, 2), 0).unwrap();
    let (first, _) = tick(&mut s, 9, 0);
    assert_eq!((first.preempted, first.admitted), (vec![(1, 2)], vec![1]));
    let waiting: Vec<(u64, usize)> =
        s.waiting().map(|q| (q.request().id, q.generated().len())).collect();
    assert_eq!(waiting, [(2, before.len()), (4, 0)], "back before those that came later");
    let done = until_idle(&mut s, 9);
    assert_eq!(done.iter().map(|d| d.0).collect::<Vec<_>>(), [3, 1, 2, 4]);
    let usage = done[2].1.usage;
    assert_eq!(
        (usage.preemptions, usage.generated, usage.recursion_steps),
        (1, 6, 50),
        "25 rows of depth 2, once each"
    );
}

#[test]
fn ends_by_stop_length_deadline_and_cancel() {
    let mut s = scheduler(SchedulerLimits::default());
    s.submit(Request { min_tokens: 3, ..request(1, 0..4, 9) }, 0).unwrap();
    let done = until_idle(&mut s, 7);
    assert_eq!(
        (done[0].1.finish.clone(), done[0].1.usage.generated),
        (Finish::Stop(7), 3),
        "none before the third"
    );
    s.submit(request(2, 0..4, 0), 0).unwrap();
    let done = until_idle(&mut s, 7);
    assert_eq!(
        (done[0].1.finish.clone(), done[0].1.usage.generated),
        (Finish::Length, 0),
        "only scores"
    );
    for id in [3, 4] {
        s.submit(Request { deadline: Some(50), ..request(id, 0..4, 9) }, 10).unwrap();
        s.submit(request(id + 2, 0..4, 9), 10).unwrap();
    }
    s.pause(4);
    tick(&mut s, 9, 20);
    assert!(s.cancel(5) && s.cancel(6) && !s.cancel(77) && !s.pause(77) && !s.unpause(77));
    let (_, ended) = tick(&mut s, 9, 60);
    let ended: Vec<(u64, Finish)> =
        ended.into_iter().map(|e| (e.request.id, e.done.finish)).collect();
    let expected = [
        (3, Finish::Deadline),
        (5, Finish::Cancelled),
        (6, Finish::Cancelled),
        (4, Finish::Deadline),
    ];
    assert_eq!(ended, expected);
    assert!(s.is_idle() && s.gauges().cancelled == 2);
    assert_eq!(s.pages().free() + s.gauges().pages_cached, s.pages().pages());
}

#[test]
fn times_are_measured_on_the_callers_clock() {
    let mut s = scheduler(SchedulerLimits::default());
    s.submit(request(1, 0..4, 2), 100).unwrap();
    // A prompt that is only scored has its time, too.
    s.submit(request(2, 0..4, 0), 110).unwrap();
    let mut ended = Vec::new();
    for (begin, end) in [(130, 138), (140, 151), (170, 175), (200, 210)] {
        let plan = s.plan(begin);
        recur(&mut s, &plan);
        for chunk in s.ready_for_coda() {
            if let After::Ended(one) = complete(&mut s, chunk, 9, end) {
                ended.push((one.request.id, one.done.usage));
            }
        }
    }
    ended.sort_by_key(|(id, _)| *id);
    let times: Vec<_> = ended.iter().map(|(_, u)| (u.queued_us, u.prefill_us)).collect();
    // Two recursions, so that prompts are complete at the end of the second tick.
    assert_eq!(times, [(30, Some(151 - 130)), (20, Some(151 - 130))]);
}

#[test]
fn who_never_ran_has_waited_until_its_end() {
    let mut s = scheduler(SchedulerLimits { max_seqs: 1, ..SchedulerLimits::default() });
    s.submit(request(1, 0..4, 90), 0).unwrap();
    s.submit(Request { deadline: Some(70), ..request(2, 0..4, 2) }, 10).unwrap();
    s.submit(request(3, 0..4, 2), 25).unwrap();
    tick(&mut s, 9, 30);
    s.cancel(3);
    let waited = |ended: &[Ended]| {
        let usage = ended[0].done.usage;
        (ended[0].request.id, usage.queued_us, usage.prefill_us)
    };
    assert_eq!(waited(&tick(&mut s, 9, 60).1), (3, 60 - 25, None));
    assert_eq!(waited(&tick(&mut s, 9, 80).1), (2, 80 - 10, None));
}

#[test]
fn a_cancel_between_drawing_and_reporting_drops_the_token() {
    let mut s = scheduler(SchedulerLimits::default());
    s.submit(request(1, 0..4, 9), 0).unwrap();
    let first = s.plan(0);
    recur(&mut s, &first);
    let second = s.plan(0);
    recur(&mut s, &second);
    let ready = s.ready_for_coda();
    s.cancel(1);
    let After::Ended(ended) = complete(&mut s, ready[0], 9, 0) else { panic!("cancelled") };
    assert_eq!((ended.done.finish, ended.done.usage.generated), (Finish::Cancelled, 0));
    // Its rows brought nothing that is told, so how far they came does not show.
    assert_eq!((ended.done.usage.recursion_steps, ended.done.usage.dense_steps), (0, 0));
    assert_eq!(s.gauges().recursion_steps, (8, 8), "the work was done");
}

#[test]
fn a_failure_inside_ends_the_sequence_and_frees_its_pages() {
    let mut s = scheduler(SchedulerLimits::default());
    s.submit(request(1, 0..4, 9), 0).unwrap();
    s.plan(0);
    s.append(0, 0, 4).unwrap();
    let ended = s.fail(0, "no memory".into(), 5).unwrap();
    assert_eq!(ended.done.finish, Finish::Failed("no memory".into()));
    assert_eq!((s.fail(0, String::new(), 5), s.gauges().failed), (None, 1));
    assert!(s.is_idle() && s.pages().free() == s.pages().pages());
}
