//! Random loads in virtual time against a model of what must come out: contents of every page read,
//! order of starts, progress of the most important sequence, exact accounting of pages, the same
//! text whatever runs beside it.

#[allow(unreachable_pub)]
mod world;

use std::collections::BTreeMap;

use scheduler::{
    Brownout, ChunkStage, DepthOptions, Finish, KvShape, PAGE, Pooling, Refusal, Request,
    SamplingParams, SchedulerLimits,
};
use world::{Life, Text, World, mix};

/// A stream of numbers.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Odds of one experiment.
struct Load {
    arrivals: u64,
    priorities: u64,
    cancels: u64,
    pauses: u64,
    longest: u64,
}

fn limits(dice: &mut Dice, layers: &[usize], recursions: usize) -> SchedulerLimits {
    let unit: usize = layers.iter().sum();
    let brownout = Brownout { floor: 1, waiting: 4, pages: unit, ease: 1, fall: 3, rise: 9 };
    SchedulerLimits {
        queue_requests: 4 + dice.below(20) as usize,
        queue_tokens: 200 + dice.below(800) as usize,
        max_seqs: 1 + dice.below(8) as usize,
        max_batch_tokens: 1 + dice.below(64) as usize,
        prefill_chunk: 1 + dice.below(40) as usize,
        pages: unit * (2 + dice.below(30) as usize),
        coda_batch: 1 + dice.below(6) as usize,
        coda_wait: dice.below(2 * recursions as u64 + 1),
        context: 40 + dice.below(160) as usize,
        pause_grace: dice.below(20),
        brownout: dice.one_in(3).then_some(brownout),
    }
}

/// A new prompt, or one that goes on from a text seen before (like the next turn of a talk), or the
/// very same again.
fn prompt(dice: &mut Dice, load: &Load, lives: &BTreeMap<u64, Life>) -> Vec<u32> {
    if !lives.is_empty() && dice.one_in(3) {
        let earlier = &lives.values().nth(dice.below(lives.len() as u64) as usize).unwrap().text;
        let cut = if dice.one_in(2) { earlier.tokens.len() } else { earlier.request.prompt.len() };
        let more = if dice.one_in(2) { 0 } else { 1 + dice.below(20) };
        let more: Vec<u32> = (0..more).map(|_| dice.below(24) as u32).collect();
        return [&earlier.tokens[..cut], &more].concat();
    }
    // Few beginnings, so that prompts share them, of a length that ends anywhere in a block.
    let family = dice.below(3);
    let shared = dice.below(60) as usize;
    let own = 1 + dice.below(load.longest) as usize;
    let mut prompt: Vec<u32> =
        (0..shared).map(|i| (mix(family << 32 | i as u64) % 24) as u32).collect();
    prompt.extend((0..own).map(|_| dice.below(24) as u32));
    prompt
}

fn request(dice: &mut Dice, id: u64, load: &Load, world: &World) -> Request {
    let (recursions, now_us) = (world.recursions as u32, world.now_us);
    let prompt = prompt(dice, load, &world.lives);
    let max_depth = dice.one_in(4).then(|| 1 + dice.below(u64::from(recursions)) as u32);
    let most = max_depth.unwrap_or(recursions);
    let depth_options = DepthOptions {
        max_depth,
        min_depth: if dice.one_in(4) { dice.below(u64::from(most) + 1) as u32 } else { 0 },
        threshold: if dice.one_in(8) { 0.5 } else { 0.0 },
        mean_depth: dice.one_in(3).then(|| 0.5 + dice.below(30) as f32 / 10.0),
    };
    let from = dice.below(prompt.len() as u64) as usize;
    let prompt_scores = dice.one_in(10).then_some(from);
    let embedding = dice.one_in(10).then_some(Pooling::Mean);
    Request {
        id,
        prompt,
        max_tokens: if dice.one_in(10) { 0 } else { dice.below(load.longest) as usize },
        min_tokens: dice.below(8) as usize,
        stop_ids: if dice.one_in(2) { vec![dice.below(24) as u32] } else { Vec::new() },
        sampling: SamplingParams { seed: dice.below(2), ..SamplingParams::default() },
        depth_options,
        top: None,
        prompt_scores,
        embedding,
        routed_experts: dice.one_in(8),
        adapter: dice.below(2) as u32,
        priority: dice.below(load.priorities) as i32,
        deadline: dice.one_in(12).then(|| now_us + dice.below(200_000)),
    }
}

/// Ticks that a sequence takes at most while nothing stands above it: each chunk enters with its
/// first recursion, turns once a tick, waits to leave; a chunk of prompt rows takes the least share
/// of rows, or ends a page.
fn alone(text: &Text, limits: &SchedulerLimits, recursions: usize) -> u64 {
    let (known, new) = (text.tokens.len(), text.request.max_tokens - text.generated());
    let least = PAGE.min(limits.max_batch_tokens).min(limits.prefill_chunk);
    let chunks = 2 * (known + new).div_ceil(least) + 1 + new;
    chunks as u64 * (recursions as u64 + limits.coda_wait + 1)
}

/// The most important sequence that is not paused, with its slot.
fn head(world: &World) -> Option<(u64, bool)> {
    let lives = world.lives.values().filter(|l| l.ended.is_none() && !l.paused);
    let head = lives.max_by_key(|l| (l.text.request.priority, std::cmp::Reverse(l.arrival)))?;
    let id = head.text.request.id;
    Some((id, world.in_slot.values().any(|&runs| runs == id)))
}

/// Follows the head: from the moment it has a slot and nothing stands above it, it ends within
/// [`alone`].
#[derive(Default)]
struct Follower {
    head: Option<u64>,
    since: u64,
    bound: u64,
}

impl Follower {
    fn look(&mut self, world: &World, limits: &SchedulerLimits, tick: u64) {
        let now = head(world).filter(|&(_, runs)| runs).map(|(id, _)| id);
        if now != self.head {
            self.head = now;
            self.since = tick;
            self.bound =
                now.map_or(0, |id| alone(&world.lives[&id].text, limits, world.recursions));
        }
        assert!(
            now.is_none() || tick - self.since <= self.bound,
            "head {:?} for {} ticks, bound {}",
            now,
            tick - self.since,
            self.bound
        );
    }
}

/// One experiment; returns preemptions, copies on write, and resumed tokens.
fn experiment(seed: u64, ticks: u64) -> [u64; 3] {
    let mut dice = Dice(mix(seed));
    let shapes: [&[usize]; 5] = [&[2, 1, 1, 1], &[1, 2, 2], &[2, 2, 0, 0], &[1, 1], &[3, 1, 1, 0]];
    let layers = shapes[dice.below(5) as usize];
    let recursions = layers.len() - 1;
    let limits = limits(&mut dice, layers, recursions);
    let load = Load {
        arrivals: 2 + dice.below(30),
        priorities: 1 + dice.below(3),
        cancels: 20 + dice.below(400),
        pauses: 10 + dice.below(200),
        longest: 4 + dice.below(60),
    };
    let shape =
        KvShape { layers: layers.to_vec(), every_row: dice.one_in(4), by_seed: dice.one_in(3) };
    let mut world = World::new(limits.clone(), shape);
    let mut follower = Follower::default();
    for tick in 0..ticks {
        disturb(&mut world, &mut dice, &load);
        world.tick();
        within_limits(&world, &limits);
        follower.look(&world, &limits, tick);
        if tick % 8 == 0 {
            world.scheduler.check().unwrap();
        }
    }
    finish(&mut world, &limits);
    [world.scheduler.gauges().preemptions, world.copies, world.resumed]
}

fn disturb(world: &mut World, dice: &mut Dice, load: &Load) {
    if dice.one_in(load.arrivals) {
        let id = dice.next();
        let request = request(dice, id, load, world);
        match world.submit(request) {
            Ok(()) | Err(Refusal::Overloaded { .. } | Refusal::Invalid { .. }) => {}
            Err(Refusal::Draining) => panic!("not draining"),
        }
    }
    let live: Vec<u64> =
        world.lives.values().filter(|l| l.ended.is_none()).map(|l| l.text.request.id).collect();
    for id in live {
        if dice.one_in(load.cancels * 8) {
            world.cancel(id);
        }
        let paused = world.lives[&id].paused;
        if dice.one_in(if paused { 12 } else { load.pauses }) {
            world.pause(id, !paused);
        }
    }
}

fn within_limits(world: &World, limits: &SchedulerLimits) {
    let gauges = world.scheduler.gauges();
    assert!(gauges.running <= limits.max_seqs);
    assert_eq!(
        world.scheduler.pages().free() + gauges.pages_used.iter().sum::<usize>(),
        limits.pages
    );
    for running in (0..limits.max_seqs).filter_map(|slot| world.scheduler.running(slot)) {
        if let Some(ChunkStage::Recurring { rows, recursion }) = running.chunk().map(|f| f.stage) {
            assert!(rows >= 1 && recursion < world.recursions);
        }
    }
}

/// Lets everything run to its end, within the sum of what each takes alone; then nothing may be
/// left.
fn finish(world: &mut World, limits: &SchedulerLimits) {
    world.scheduler.drain();
    let live: Vec<u64> =
        world.lives.values().filter(|l| l.ended.is_none()).map(|l| l.text.request.id).collect();
    let bound: u64 =
        live.iter().map(|id| alone(&world.lives[id].text, limits, world.recursions)).sum();
    for id in live {
        world.pause(id, false);
    }
    let mut ticks = 0;
    while !world.scheduler.is_idle() {
        world.tick();
        ticks += 1;
        assert!(ticks <= bound + 1, "draining takes {ticks} ticks, bound {bound}");
    }
    assert!(world.lives.values().all(|l| l.ended.is_some()));
    world.scheduler.check().unwrap();
    assert_eq!(
        world.scheduler.gauges().pages_cached,
        limits.pages - world.scheduler.pages().free()
    );
    same_text_alone(world);
}

/// Every text that came to its end is what its request alone makes of it.
fn same_text_alone(world: &World) {
    for life in world.lives.values() {
        if !matches!(life.ended, Some(Finish::Stop(_) | Finish::Length)) {
            continue;
        }
        let mut text = Text::new(life.text.request.clone(), &world.shape);
        for position in text.tokens.len()..life.text.tokens.len() {
            let token = text.next();
            let cap = if world.brownout { life.text.caps[position] } else { text.next_cap() };
            text.draw(token, cap);
        }
        assert_eq!((text.tokens, text.caps), (life.text.tokens.clone(), life.text.caps.clone()));
    }
}

fn experiments(count: u64, ticks: u64, seed: u64) {
    let mut sums = [0; 3];
    for i in 0..count {
        let found = experiment(seed + i, ticks);
        sums.iter_mut().zip(found).for_each(|(sum, f)| *sum += f);
    }
    let [preemptions, copies, resumed] = sums;
    // The loads must reach what they are meant to try.
    assert!(preemptions > count, "{preemptions} preemptions");
    assert!(copies > count && resumed > count, "{copies} copies, {resumed} tokens resumed");
}

#[test]
fn fifty_thousand_ticks() {
    experiments(50, 1000, 1);
}

/// `cargo test --release -p scheduler -- --ignored`
#[test]
#[ignore = "a million ticks, many seconds"]
fn a_million_ticks() {
    experiments(400, 2500, 1_000);
}
