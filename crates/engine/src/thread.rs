//! The engine on a thread of its own, with the machine's clock.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use scheduler::{Backend, EventSink, Gauges, Refusal, Request};

use crate::{Engine, EngineHandle};

/// How long the thread sleeps when nobody rings: deadlines and slow readers are looked after this
/// often.
const NAP: Duration = Duration::from_millis(20);

/// A running engine. Dropping it stops the thread after the current tick.
pub struct EngineThread {
    handle: Arc<EngineHandle>,
    clock: Instant,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    /// Starts the thread; operations run on `pool`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(mut engine: Engine, pool: Arc<rayon::ThreadPool>) -> std::io::Result<Self> {
        let (handle, clock) = (engine.handle().clone(), Instant::now());
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || pool.install(|| work(&mut engine, clock, &stopping)))?;
        Ok(Self { handle, clock, stop, thread: Some(thread) })
    }
}

impl Backend for EngineThread {
    fn submit(&self, request: Request, sink: Box<dyn EventSink>) -> Result<(), Refusal> {
        self.handle.submit(request, sink, self.now_us())
    }

    fn cancel(&self, id: u64) {
        self.handle.cancel(id);
    }

    fn gauges(&self) -> Gauges {
        self.handle.gauges()
    }

    fn now_us(&self) -> u64 {
        now_us(self.clock)
    }

    fn idle_for_us(&self) -> u64 {
        if self.handle.has_work() {
            self.now_us().saturating_sub(self.handle.last_tick_us())
        } else {
            0
        }
    }

    fn drain(&self) {
        self.handle.drain();
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.handle.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(engine: &mut Engine, clock: Instant, stop: &AtomicBool) {
    let handle = engine.handle().clone();
    while !stop.load(Ordering::Relaxed) {
        if !handle.has_work() {
            handle.wait(NAP);
            if handle.is_late() {
                // Slow readers: no bell rings when they are ready again.
                handle.offer_again();
            }
            if !handle.has_work() {
                continue;
            }
        }
        let (from, before) = (now_us(clock), engine.in_passes_us());
        if catch_unwind(AssertUnwindSafe(|| engine.tick_by(&|| now_us(clock)))).is_err() {
            engine.fail_all(
                "a step of the engine panicked; its requests cannot be told apart",
                now_us(clock),
            );
        }
        handle.ticked(from, now_us(clock), engine.in_passes_us() - before);
    }
}

/// Microseconds since the thread was started.
fn now_us(clock: Instant) -> u64 {
    clock.elapsed().as_micros() as u64
}
