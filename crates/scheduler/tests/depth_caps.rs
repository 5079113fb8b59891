//! Depth caps: what the depth_options of a request and the load make of them, and that they stay.

use scheduler::{
    After, Brownout, DepthOptions, KvShape, Misuse, PAGE, PreludeChunk, Request, SamplingParams,
    Scheduler, SchedulerLimits,
};

fn request(id: u64, max_tokens: usize, depth_options: DepthOptions) -> Request {
    Request {
        id,
        prompt: vec![id as u32; 4],
        max_tokens,
        min_tokens: 0,
        stop_ids: Vec::new(),
        sampling: SamplingParams::default(),
        depth_options,
        top: None,
        prompt_scores: None,
        embedding: None,
        routed_experts: false,
        adapter: 0,
        priority: 0,
        deadline: None,
    }
}

fn scheduler(limits: SchedulerLimits) -> Scheduler {
    Scheduler::new(
        limits,
        KvShape { layers: vec![1, 1, 1, 1], every_row: false, by_seed: false },
        3,
    )
    .unwrap()
}

/// Ticks in which every row goes as deep as it may, until `slot` has drawn `tokens` tokens; gives
/// their caps.
fn caps(s: &mut Scheduler, slot: usize, tokens: usize) -> Vec<u32> {
    loop {
        let sequence = s.running(slot).map(|r| r.sequence());
        if let Some(sequence) = sequence.filter(|q| q.generated().len() >= tokens) {
            return (4..sequence.len()).map(|p| sequence.cap_of(p)).collect();
        }
        let tick = s.plan(0);
        for chunk in &tick.prelude {
            s.append(chunk.slot, 0, chunk.count).unwrap();
        }
        for due in &tick.recur {
            let running = s.running(due.slot).unwrap();
            let chunk = running.chunk().unwrap();
            let own = caps_of(s, due.slot, chunk.first, chunk.count);
            let going = own.iter().filter(|&&cap| cap as usize > due.recursion + 1).count();
            s.append(due.slot, 1 + due.recursion, due.rows).unwrap();
            s.recurred(due.slot, due.rows, going).unwrap();
        }
        for chunk in s.ready_for_coda() {
            let own = caps_of(s, chunk.slot, chunk.first, chunk.count);
            s.completed(chunk.slot, &own, chunk.draws.then_some(1), 0).unwrap();
        }
    }
}

fn caps_of(s: &Scheduler, slot: usize, first: usize, count: usize) -> Vec<u32> {
    let sequence = s.running(slot).unwrap().sequence();
    (first..first + count).map(|position| sequence.cap_of(position)).collect()
}

#[test]
fn the_mean_over_the_text_stays_within_its_bound() {
    for (mean, expected) in [
        // The first token costs the prompt's last row, floor(2.5) = 2; then floor(2.5 * 2 - 2) = 3,
        // floor(2.5 * 3 - 5) = 2, ...
        (2.5, [2, 3, 2, 3, 2, 3, 2]),
        (2.0, [2, 2, 2, 2, 2, 2, 2]),
        (1.0, [1, 1, 1, 1, 1, 1, 1]),
        (9.0, [3, 3, 3, 3, 3, 3, 3]),
    ] {
        let mut s = scheduler(SchedulerLimits::default());
        s.submit(
            request(1, 9, DepthOptions { mean_depth: Some(mean), ..DepthOptions::default() }),
            0,
        )
        .unwrap();
        assert_eq!(caps(&mut s, 0, 6), expected[1..], "mean {mean}");
        let sequence = s.running(0).unwrap().sequence();
        assert_eq!((sequence.cap_of(2), sequence.cap_of(3)), (3, expected[0]), "mean {mean}");
    }
    let mut s = scheduler(SchedulerLimits::default());
    let depth_options = DepthOptions {
        mean_depth: Some(2.5),
        min_depth: 2,
        max_depth: Some(2),
        ..DepthOptions::default()
    };
    s.submit(request(1, 9, depth_options), 0).unwrap();
    assert_eq!(caps(&mut s, 0, 3), [2, 2, 2], "never above the largest depth");
    assert_eq!(s.running(0).unwrap().sequence().cap_of(0), 2);
}

#[test]
fn a_prompt_that_is_only_scored_is_under_no_budget() {
    let mut s = scheduler(SchedulerLimits::default());
    let depth_options = DepthOptions { mean_depth: Some(1.0), ..DepthOptions::default() };
    s.submit(request(1, 0, depth_options), 0).unwrap();
    s.plan(0);
    assert!((0..4).all(|p| s.running(0).unwrap().sequence().cap_of(p) == 3));
}

/// A layout by sequence: three recursions of every row, planned as one.
#[test]
fn recursions_that_run_at_once_count_each() {
    let shape = KvShape { layers: vec![6, 0], every_row: false, by_seed: false };
    let mut s = Scheduler::at_once(SchedulerLimits::default(), shape, 3).unwrap();
    s.submit(request(1, 3, DepthOptions::default()), 0).unwrap();
    let mut ended = None;
    for tick in 0..3 {
        let plan = s.plan(tick);
        let PreludeChunk { slot, count, .. } = plan.prelude[0];
        s.append(slot, 0, count).unwrap();
        s.append(slot, 1, count).unwrap();
        s.recurred(slot, count, 0).unwrap();
        assert_eq!(s.ready_for_coda().len(), 1);
        if tick == 0 {
            let shallow = s.completed(slot, &[3, 3, 1, 3], Some(1), tick).unwrap_err().to_string();
            assert!(shallow.contains("a depth of 1, expected 3"), "{shallow}");
        }
        ended = Some(s.completed(slot, &vec![3; count], Some(1), tick).unwrap());
    }
    let Some(After::Ended(ended)) = ended else { panic!("three tokens were asked for") };
    // Four rows of the prompt, two of drawn tokens.
    assert_eq!((ended.done.usage.recursion_steps, ended.done.usage.dense_steps), (18, 18));
    assert_eq!(ended.done.usage.kv_tokens, 6 * 6);
    let gauges = s.gauges();
    assert_eq!((gauges.depths, gauges.rows_by_recursion), (vec![0, 0, 0, 6], vec![6; 3]));
    assert_eq!((gauges.recursion_steps, gauges.depth_cap), ((18, 18), 3));
}

#[test]
fn bounds_that_no_row_of_a_layout_keeps_are_refused() {
    let shape = || KvShape { layers: vec![6, 0], every_row: false, by_seed: false };
    let mut s = Scheduler::at_once(SchedulerLimits::default(), shape(), 3).unwrap();
    let none = DepthOptions::default();
    let all = "expected at least 3, which every token of this model takes";
    for (depth_options, message) in [
        (DepthOptions { max_depth: Some(2), ..none }, format!("max_depth is 2, {all}")),
        (DepthOptions { mean_depth: Some(2.5), ..none }, format!("mean_depth is 2.5, {all}")),
    ] {
        let refused = s.submit(request(1, 3, depth_options), 0).unwrap_err();
        assert_eq!(refused.to_string(), message);
    }
    let kept = DepthOptions { max_depth: Some(3), min_depth: 3, mean_depth: Some(3.0), ..none };
    s.submit(request(1, 3, kept), 0).unwrap();
    let brownout = Some(Brownout { floor: 2, ..Brownout::default() });
    let limits = SchedulerLimits { brownout, ..SchedulerLimits::default() };
    assert_eq!(
        Scheduler::at_once(limits, shape(), 3).unwrap_err().to_string(),
        "limit brownout.floor is 2, expected at least 3: change it"
    );
}

#[test]
fn under_load_new_tokens_get_less_and_prompts_do_not() {
    let brownout = Some(Brownout { floor: 1, waiting: 0, pages: 0, ease: 0, fall: 3, rise: 9 });
    let mut s = scheduler(SchedulerLimits { max_seqs: 2, brownout, ..SchedulerLimits::default() });
    s.submit(request(1, 40, DepthOptions::default()), 0).unwrap();
    s.submit(request(2, 40, DepthOptions { min_depth: 2, ..DepthOptions::default() }), 0).unwrap();
    s.submit(request(3, 1, DepthOptions::default()), 0).unwrap();
    let text = caps(&mut s, 0, 12);
    assert_eq!((text[0], s.gauges().depth_cap), (2, 1));
    assert!(text.is_sorted_by(|a, b| a >= b) && text[11] == 1, "{text:?}");
    let other = s.running(1).unwrap().sequence();
    assert!((4..other.len()).all(|p| other.cap_of(p) == 2), "not below its least depth");
    assert!((0..4).all(|p| other.cap_of(p) == 3), "a prompt's rows keep theirs");
    // What was given stays, when the load is gone too.
    s.cancel(3);
    let later = caps(&mut s, 0, 38);
    assert_eq!(later[..12], text);
    assert_eq!(later[37], 3);
}

#[test]
fn a_report_that_does_not_fit_is_refused_and_changes_nothing() {
    let mut s = scheduler(SchedulerLimits::default());
    s.submit(request(1, 9, DepthOptions::default()), 0).unwrap();
    let message = |r: Result<(), Misuse>| r.unwrap_err().to_string();
    let due = "expected a chunk of this tick's plan: report each planned chunk once";
    assert_eq!(message(s.recurred(0, 1, 1)), format!("slot 0 reports a recursion, {due}"));
    assert_eq!(message(s.recurred(99, 1, 1)), format!("slot 99 reports a recursion, {due}"));
    s.plan(0);
    let append = |s: &mut Scheduler, tier, n| message(s.append(0, tier, n).map(drop));
    let ran = "report what ran";
    assert_eq!(
        append(&mut s, 0, 5),
        format!("slot 0 reports tokens appended 5, expected 0 to 4: {ran}")
    );
    assert_eq!(append(&mut s, 2, 1), format!("slot 0 reports tier 2, expected 1: {ran}"));
    assert_eq!(append(&mut s, 9, 1), format!("slot 0 reports tier 9, expected 1: {ran}"));
    s.append(0, 0, 4).unwrap();
    assert_eq!(
        append(&mut s, 0, 1),
        format!("slot 0 reports tokens appended 5, expected 0 to 4: {ran}")
    );
    s.append(0, 1, 2).unwrap();
    assert_eq!(
        message(s.recurred(0, 5, 0)),
        format!("slot 0 reports rows that took the recursion 5, expected 0 to 4: {ran}")
    );
    assert_eq!(
        message(s.recurred(0, 2, 3)),
        format!("slot 0 reports rows that go on 3, expected 0 to 2: {ran}")
    );
    let left = |s: &mut Scheduler, depths: &[u32], drawn| {
        message(s.completed(0, depths, drawn, 0).map(drop))
    };
    assert_eq!(left(&mut s, &[1; 4], Some(1)), format!("slot 0 reports rows completed, {due}"));
    s.recurred(0, 2, 0).unwrap();
    assert_eq!(message(s.recurred(0, 2, 0)), format!("slot 0 reports a recursion, {due}"));
    assert_eq!(s.ready_for_coda().len(), 1);
    assert_eq!(
        left(&mut s, &[1; 3], Some(1)),
        format!("slot 0 reports rows completed 3, expected 4: {ran}")
    );
    assert_eq!(
        left(&mut s, &[0, 0, 1, 1], None),
        format!("slot 0 reports tokens drawn 0, expected 1: {ran}")
    );
    assert_eq!(
        left(&mut s, &[0, 0, 1, 9], Some(1)),
        format!("slot 0 reports a depth of 9, expected 0 to 3: {ran}")
    );
    let tier = "slot 0 reports depths of which a tier's tokens come to";
    assert_eq!(left(&mut s, &[0, 1, 1, 1], Some(1)), format!("{tier} 3, expected 2: {ran}"));
    s.completed(0, &[0, 1, 0, 1], Some(1), 0).unwrap();
    assert_eq!(s.gauges().depths, [2, 2, 0, 0]);
    s.check().unwrap();
}

#[test]
fn pages_of_one_tier_are_those_of_its_rows() {
    let mut s = scheduler(SchedulerLimits::default());
    s.submit(Request { prompt: (0..40).collect(), ..request(1, 1, DepthOptions::default()) }, 0)
        .unwrap();
    let tick = s.plan(0);
    s.append(0, 0, tick.prelude[0].count).unwrap();
    s.append(0, 1, PAGE + 1).unwrap();
    assert_eq!(s.gauges().pages_used, [3, 2, 0, 0]);
}
