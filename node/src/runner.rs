//! The one way to run a state machine: its inputs as they come, its timer, and its outputs carried out.
//!
//! Time is tokio's, so that a machine runs on a paused clock too. It stands below the services and the network, which
//! both have machines to run.

use std::time::Instant;

use p2p_protocol::machine::StateMachine;
use tokio::time::sleep_until;

/// A machine and its timer. Whoever has a loop of its own (the swarm's) drives one by these methods; everybody else
/// calls [`run`].
#[derive(Debug)]
pub struct Runner<M> {
    machine: M,
}

impl<M: StateMachine> Runner<M> {
    /// A runner of `machine`.
    pub fn new(machine: M) -> Self {
        Self { machine }
    }

    /// The machine, to look at.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// Tells the machine what happened, now.
    pub fn handle(&mut self, input: M::Input) {
        self.machine.handle(now(), input);
    }

    /// The next thing to do; `None`: nothing for now.
    pub fn poll_output(&mut self) -> Option<M::Output> {
        self.machine.poll_output()
    }

    /// Waits until the machine's timer is due, and tells it so; for ever where it has none. Cancel-safe.
    pub async fn due(&mut self) {
        match self.machine.poll_timeout() {
            Some((at, _)) => sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
        self.machine.handle_timeout(now());
    }
}

/// What a machine is run in: where its inputs come from, and what its outputs do.
pub trait World<M: StateMachine> {
    /// Begins what the machine decided; must not wait.
    fn act(&mut self, output: M::Output);

    /// What happened next; `None`: nothing will any more, and the run is over. Must be cancel-safe: it is dropped
    /// whenever the timer comes first.
    fn next(&mut self) -> impl Future<Output = Option<M::Input>> + Send;

    /// All that was decided has begun; `machine` stands still until the next input.
    fn settled(&mut self, machine: &M) {
        let _ = machine;
    }
}

/// Runs `machine` in `world` until that has no more inputs.
pub async fn run<M: StateMachine, W: World<M>>(machine: M, mut world: W) {
    let mut runner = Runner::new(machine);
    loop {
        while let Some(output) = runner.poll_output() {
            world.act(output);
        }
        world.settled(runner.machine());
        tokio::select! {
            input = world.next() => match input {
                Some(input) => runner.handle(input),
                None => return,
            },
            () = runner.due() => {}
        }
    }
}

/// Tokio's clock, as machines take it.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;

    /// Says each number back a second after it came.
    #[derive(Default)]
    struct Echo {
        waiting: Vec<(Instant, u32)>,
        said: Vec<u32>,
    }

    impl StateMachine for Echo {
        type Input = u32;
        type Output = u32;

        fn handle(&mut self, now: Instant, input: u32) {
            self.waiting.push((now + Duration::from_secs(1), input));
        }

        fn handle_timeout(&mut self, now: Instant) {
            self.said.extend(self.waiting.extract_if(.., |(at, _)| *at <= now).map(|(_, number)| number));
        }

        fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
            self.waiting.iter().map(|(at, _)| (*at, "an echo")).min()
        }

        fn poll_output(&mut self) -> Option<u32> {
            self.said.pop()
        }
    }

    struct Pipes {
        inputs: mpsc::Receiver<u32>,
        outputs: mpsc::UnboundedSender<u32>,
    }

    impl World<Echo> for Pipes {
        fn act(&mut self, output: u32) {
            self.outputs.send(output).expect("the test listens");
        }

        async fn next(&mut self) -> Option<u32> {
            self.inputs.recv().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_gets_its_inputs_and_its_time_and_ends_with_its_world() {
        let (input, inputs) = mpsc::channel(4);
        let (outputs, mut output) = mpsc::unbounded_channel();
        let running = tokio::spawn(run(Echo::default(), Pipes { inputs, outputs }));
        let began = tokio::time::Instant::now();
        input.send(7).await.expect("it runs");
        assert_eq!(output.recv().await, Some(7));
        assert!(began.elapsed() >= Duration::from_secs(1));
        drop(input);
        running.await.expect("it ends without a panic");
    }
}
