//! Training, evaluation, generation and serving route alike wherever a decision looks at its row
//! alone: all decisions, not nearly all.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use checkpoint::RealDisk;
use common::folders::{data, finish, open, small};
use engine::{
    Batch, BatchSequence, DefaultDraw, Engine, EngineOptions, Generation, Sampler, Scoring,
    causal_rule, generate_watched, run_requests, score,
};
use model::expert_routers::ExpertRouterConfig;
use model::mlp::MlpConfig;
use model::routers::expert_choice::Config as Expert;
use model::{
    CausalThresholds, KvMode, Model, ModelConfig, PassCache, RouterConfig, RouterState, Rows, Rule,
    Sharing,
};
use ops::KvFormat;
use scheduler::{DepthOptions, Request, SamplingParams, SchedulerLimits};
use testkit::{How, VOCAB, ids, mlps, routers, run, tiny};
use trace::{Recorder, RoutingDecision, Trace};
use train::{Stop, score_rule};

const LENGTH: usize = 30;
const SEED: u64 = 3;

/// Models of every depth router beside default experts, and of all experts beside one router.
fn models() -> Vec<Arc<Model>> {
    let with = |router: &RouterConfig, mlp: &MlpConfig| ModelConfig {
        mlp: mlp.clone(),
        ..tiny(router.clone(), KvMode::RecursionWise, Sharing::MiddleCycle)
    };
    let all = mlps();
    let experts: Vec<_> = all.iter().filter(|m| matches!(m, MlpConfig::Experts(_))).collect();
    let mut configs: Vec<_> = routers().iter().map(|router| with(router, experts[0])).collect();
    let depth = RouterConfig::ExpertChoice(Expert { alpha: 1.0, ..Expert::default() });
    configs.extend(experts.iter().map(|mlp| with(&depth, mlp)));
    let legal = configs.into_iter().filter(|config| config.check().is_ok());
    let models: Vec<_> = legal.map(|config| Arc::new(testkit::fresh(&config, 5))).collect();
    assert!(models.len() > 20, "{}", models.len());
    models
}

fn batch(texts: &[Vec<u32>]) -> Batch {
    let (document, same) = (vec![0; LENGTH], vec![true; LENGTH]);
    let sequences: Vec<_> = texts
        .iter()
        .map(|ids| BatchSequence { ids, targets: ids, document: &document, same_document: &same })
        .collect();
    Batch::pack(&sequences, true)
}

/// A rule by which nothing compares rows, in training neither.
fn rule(model: &Model) -> Rule {
    match causal_rule(model, &RouterState::default(), &[batch(&[ids(1, LENGTH), ids(2, LENGTH)])]) {
        Rule::NonCausal => Rule::Causal(CausalThresholds::open("test", 3)),
        causal => causal,
    }
}

/// The trace without steps, which only training has.
fn stepless(trace: &Trace) -> Trace {
    let mut all = Trace::among(trace.sites.clone());
    trace.iter().for_each(|decision| all.push(RoutingDecision { step: None, ..decision }));
    all
}

fn request(id: u64, prompt: &[u32]) -> Request {
    Request {
        id,
        prompt: prompt.to_vec(),
        max_tokens: 1,
        min_tokens: 0,
        stop_ids: Vec::new(),
        sampling: SamplingParams { seed: SEED, ..SamplingParams::default() },
        depth_options: DepthOptions::default(),
        top: None,
        prompt_scores: None,
        priority: 0,
        deadline: None,
        adapter: 0,
        embedding: None,
        routed_experts: false,
    }
}

/// How many decisions differ, and the first that does.
fn differing(a: &Trace, b: &Trace) -> String {
    let wrong: Vec<_> = a.iter().zip(b.iter()).filter(|(a, b)| a != b).collect();
    format!("{} and {} decisions, {} differ: {:?}", a.len(), b.len(), wrong.len(), wrong.first())
}

#[test]
fn training_evaluation_generation_and_serving_route_alike() {
    let texts: Vec<Vec<u32>> = (0..3).map(|i| ids(40 + i, LENGTH)).collect();
    for model in models() {
        let name = format!("{:?} {:?}", model.config().router, model.config().mlp);
        let (rule, state) = (rule(&model), RouterState::default());
        let recorder = || Recorder::of(&model);

        let mut trained = recorder();
        let how = How { state: state.clone(), record: true, ..How::by(&rule) };
        let whole = texts.concat();
        let rows = Rows::batch(texts.len(), LENGTH);
        run(&model, &whole, &rows, &mut PassCache::new(false), &how, &mut trained);
        let trained = trained.take();
        assert!(trained.iter().all(|decision| decision.step == Some(1001)), "{name}");
        let trained = stepless(&trained);
        assert!(trained.len() >= 3 * LENGTH, "{name}: {}", trained.len());

        let mut evaluated = recorder();
        let how = Scoring { seed: SEED, ..Scoring::by(&rule, &state) };
        score(&model, &batch(&texts), &how, &mut evaluated);
        let evaluated = evaluated.take();
        assert!(trained == evaluated, "{name}: {}", differing(&trained, &evaluated));

        let shared = Arc::new(Mutex::new(recorder()));
        let limits = SchedulerLimits {
            context: 64,
            pages: 4000,
            max_seqs: 4,
            max_batch_tokens: 24,
            prefill_chunk: 7,
            ..SchedulerLimits::default()
        };
        let options = EngineOptions { limits, kv: KvFormat::F32, draw: Arc::new(DefaultDraw) };
        let mut engine =
            Engine::new(model.clone(), rule.clone(), state.clone(), options).expect("legal");
        engine.watch(shared.clone());
        let requests = texts.iter().zip(0..).map(|(text, id)| request(id, text)).collect();
        run_requests(engine, requests, &mut |_, _| true).expect("runs");
        let served = shared.lock().expect("whole").take();
        assert!(trained == served, "{name}: {}", differing(&trained, &served));

        let mut generated = Trace::among(trained.sites.clone());
        for (number, prompt) in texts.iter().enumerate() {
            let shared = Arc::new(Mutex::new(recorder()));
            let sampler = Sampler { seed: SEED, ..Sampler::default() };
            let what = Generation {
                prompt,
                max_tokens: 1,
                stop: &[],
                sampler: &sampler,
                rule: &rule,
                state: &state,
                max_depth: None,
                choice: 0,
                constraint: None,
            };
            generate_watched(ops::Ops::Fast, &model, &what, Some(shared.clone()), &mut |_| true)
                .expect("runs");
            let one = shared.lock().expect("whole").take();
            generated.append(&one, |_| number as u64);
        }
        assert!(trained == generated, "{name}: {}", differing(&trained, &generated));
    }
}

#[test]
fn what_is_recorded_is_what_the_router_says() {
    let router = RouterConfig::ExpertChoice(Expert { alpha: 1.0, ..Expert::default() });
    let mlp = MlpConfig::Experts(model::mlp::experts::Config {
        count: 6,
        width: 8,
        router: ExpertRouterConfig::default(),
        ..model::mlp::experts::Config::default()
    });
    let config = ModelConfig { mlp, ..tiny(router, KvMode::RecursionWise, Sharing::MiddleCycle) };
    let model = testkit::fresh(&config, 5);
    let text = ids(7, 2 * LENGTH);
    let (rows, mut recorder) = (Rows::batch(2, LENGTH), Recorder::of(&model));
    let how = How { state: RouterState::default(), ..How::by(&Rule::NonCausal) };
    let out = run(&model, &text, &rows, &mut PassCache::new(false), &how, &mut recorder);
    let trace = recorder.take();
    let uses: Vec<_> =
        trace.sites.iter().map(|(layer, site)| (*layer, site.uses.clone())).collect();
    assert_eq!(uses[1..], [(Some(0), vec![0]), (Some(1), vec![1, 2, 3]), (Some(2), vec![4]),]);
    for (row, &depth) in out.depth.iter().enumerate() {
        let (sequence, position) = ((row / LENGTH) as u64, (row % LENGTH) as u32);
        let of: Vec<_> =
            trace.iter().filter(|d| (d.sequence, d.position) == (sequence, position)).collect();
        assert!(of.iter().all(|d| d.token == text[row]));
        let went: Vec<u32> =
            of.iter().filter(|d| d.layer.is_none()).flat_map(|d| d.targets).copied().collect();
        assert_eq!(went, (0..depth).collect::<Vec<_>>(), "row {row}");
        let experts: Vec<_> = of.iter().filter(|d| d.layer.is_some()).collect();
        let places: Vec<_> = experts.iter().map(|d| (d.layer, d.recursion)).collect();
        let shared = (0..depth).map(|recursion| (Some(1), recursion));
        let mut expected: Vec<_> = shared.chain([(Some(0), 0), (Some(2), 0)]).collect();
        expected.sort_by_key(|(layer, recursion)| (*recursion, *layer));
        assert_eq!(places, expected, "row {row}");
        for decision in experts {
            assert_eq!((decision.targets.len(), decision.weights.len()), (2, 2));
            assert!((decision.weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
    assert!(out.depth.contains(&1) && out.depth.contains(&3));
    assert!(text.iter().all(|&token| (token as usize) < VOCAB));
}

/// The files in a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("lists").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        all.insert(name, std::fs::read(path).expect("reads"));
    }
    all
}

/// Steps are traced as often as the recipe says; the run is the same run, and goes on as one after
/// an end in the middle.
#[test]
fn traced_runs_are_the_same_runs() {
    let place = tempfile::TempDir::new().expect("a folder");
    let recipe = small(&data(place.path(), 0), RouterConfig::default());
    let at = |name: &str| place.path().join(name);
    finish(&recipe, &at("plain"));
    let mut traced = recipe.clone();
    traced.log.trace_every = 2;
    let run = finish(&traced, &at("traced"));
    let log = |name: &str| std::fs::read(at(name).join("log.jsonl")).expect("a log");
    assert_eq!(log("plain"), log("traced"));
    assert!(!at("plain").join("traces").exists());
    let found = files(&at("traced").join("traces"));
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, ["step-00000002.parquet", "step-00000004.parquet"]);
    let first = trace::read(&at("traced/traces/step-00000004.parquet")).expect("a trace");
    let length = traced.data.sequence_length;
    let rows: BTreeSet<_> = first.iter().map(|d| (d.step, d.sequence, d.position)).collect();
    let expected = (0..2).flat_map(|s| (0..length as u32).map(move |p| (Some(4), s, p)));
    assert!(rows == expected.collect(), "each row of the step");
    // The tokens are those of the windows that the step read.
    let windows: Vec<_> = (6..8).map(|i| run.windows().at(i).expect("a window").ids).collect();
    assert!(first.iter().all(|d| windows[d.sequence as usize][d.position as usize] == d.token));
    // Ended behind the third step and continued.
    let mut broken = open(&traced, &at("broken")).expect("opens");
    let mut steps = 0;
    let stopped = broken.go(&RealDisk, &|| 0.0, &mut |event| {
        steps += u32::from(matches!(event, train::Event::Step { .. }));
        if steps == 3 { Stop::Save } else { Stop::No }
    });
    assert!(stopped.expect("runs").is_none());
    drop(broken);
    finish(&traced, &at("broken"));
    assert!(files(&at("broken").join("traces")) == found, "the same files");
}

/// A trace that cannot be written is told once, and the run is the run that it would have been; a
/// folder that cannot be made is told before the first step.
#[test]
fn a_trace_that_cannot_be_written_loses_no_run() {
    let place = tempfile::TempDir::new().expect("a folder");
    let mut recipe = small(&data(place.path(), 0), RouterConfig::default());
    let at = |name: &str| place.path().join(name);
    finish(&recipe, &at("plain"));
    recipe.log.trace_every = 1;
    let mut run = open(&recipe, &at("traced")).expect("opens");
    std::fs::remove_dir(at("traced/traces")).expect("made when it opened");
    std::fs::write(at("traced/traces"), "in the way").expect("writes");
    let mut lost = Vec::new();
    let ended = run.go(&RealDisk, &|| 0.0, &mut |event| {
        if let train::Event::TraceLost { error } = event {
            lost.push(error.to_string());
        }
        Stop::No
    });
    assert!(ended.expect("goes on").is_some());
    assert!(lost.len() == 1 && lost[0].contains("traces"), "{lost:?}");
    let log = |name: &str| std::fs::read(at(name).join("log.jsonl")).expect("a log");
    assert_eq!(log("plain"), log("traced"));
    std::fs::create_dir(at("blocked")).expect("a folder");
    std::fs::write(at("blocked/traces"), "in the way").expect("writes");
    let error = open(&recipe, &at("blocked")).err().expect("told before step 1").to_string();
    assert!(error.contains("blocked/traces"), "{error}");
}

/// Windows that are watched have their own numbers and cost what they cost unwatched.
#[test]
fn watched_windows_have_their_numbers() {
    let place = tempfile::TempDir::new().expect("a folder");
    let recipe = small(&data(place.path(), 0), RouterConfig::default());
    let run = finish(&recipe, &place.path().join("run"));
    let (model, valid) = (&run.trainer.model, run.valid());
    let rule = Rule::Causal(CausalThresholds::open("test", recipe.model.recursions));
    let numbers = [1, 3, 4];
    let chunks = train::in_chunks(valid, &numbers).expect("windows");
    let chunks: Vec<_> = chunks.concat().chunks(2).map(<[_]>::to_vec).collect();
    let how = Scoring::by(&rule, &run.trainer.router);
    let mut recorder = trace::Recorder::of(model);
    let watch = Some((&numbers[..], &mut recorder as &mut dyn model::Probe));
    let watched = train::score_watched(model, valid, &chunks, true, &how, watch);
    assert!(watched == score_rule(model, valid, &chunks, true, &how));
    let trace = recorder.take();
    let met: BTreeSet<u64> = trace.iter().map(|d| d.sequence).collect();
    assert_eq!(met.into_iter().collect::<Vec<_>>(), numbers);
    for decision in trace.iter() {
        let window = valid.unshuffled(decision.sequence).expect("a window");
        assert_eq!(window.ids[decision.position as usize], decision.token);
    }
}
