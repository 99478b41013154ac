//! Tests with real, tiny processes.

use std::path::Path;

use tokio::net::TcpStream;

use super::*;

const SOON: Duration = Duration::from_secs(20);

fn shell(script: &str) -> CommandConfig {
    CommandConfig {
        program: "sh".into(),
        args: vec!["-c".into(), script.into()],
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
        ready_timeout: SOON,
    }
}

fn quick<P, F>(mut supervisor: Supervisor<P>) -> Supervisor<P>
where
    P: Fn() -> F + Send + Sync,
    F: Future<Output = bool> + Send,
{
    supervisor.pace = Pace {
        first: Duration::from_millis(5),
        most: Duration::from_millis(20),
        steady: SOON,
    };
    supervisor
}

/// The state that fulfils this, once there is one.
async fn until(
    states: &mut watch::Receiver<Process>,
    wanted: impl FnMut(&Process) -> bool,
) -> Process {
    let state = timeout(SOON, states.wait_for(wanted)).await;
    state.expect("in time").expect("watched").clone()
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[tokio::test]
async fn a_command_that_ends_is_started_again_and_its_last_words_are_known() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log");
    let script = format!(
        "echo life >> '{}'; echo $GREETING oops >&2; exit 3",
        log.display()
    );
    let stop = CancellationToken::new();
    let (supervisor, mut states) =
        Supervisor::new(shell(&script), || async { false }, stop.clone());
    let run = tokio::spawn(quick(supervisor).run());
    for life in 1..=3 {
        let is_down = |state: &Process| matches!(state, Process::Down(_));
        let state = until(&mut states, is_down).await;
        let reason = state.not_ready().expect("down");
        assert!(reason.contains("exit status: 3"), "{reason}");
        assert!(reason.contains("hello oops"), "{reason}");
        assert!(lines(&log) >= life);
        until(&mut states, |state| *state == Process::Starting).await;
    }
    stop.cancel();
    timeout(SOON, run).await.expect("in time").expect("ends");
}

#[tokio::test]
async fn stopping_ends_the_command_and_all_it_started() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = free.local_addr().expect("bound");
    drop(free);
    let script = format!(
        "python3 -m http.server --bind 127.0.0.1 {} & wait",
        address.port()
    );
    let stop = CancellationToken::new();
    let probe = move || async move { TcpStream::connect(address).await.is_ok() };
    let (supervisor, mut states) = Supervisor::new(shell(&script), probe, stop.clone());
    let run = tokio::spawn(quick(supervisor).run());
    until(&mut states, |state| *state == Process::Ready).await;
    stop.cancel();
    timeout(SOON, run).await.expect("in time").expect("ends");
    let gone = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, gone).await.expect("the port is free again");
}

#[tokio::test]
async fn a_command_that_never_answers_is_given_up() {
    let command = CommandConfig {
        ready_timeout: Duration::from_millis(50),
        ..shell("sleep 600 & sleep 600")
    };
    let stop = CancellationToken::new();
    let (supervisor, mut states) = Supervisor::new(command, || async { false }, stop.clone());
    let run = tokio::spawn(quick(supervisor).run());
    let state = until(&mut states, |state| matches!(state, Process::Down(_))).await;
    let reason = state.not_ready().expect("down");
    assert!(reason.contains("did not answer within 50ms"), "{reason}");
    stop.cancel();
    timeout(SOON, run).await.expect("in time").expect("ends");
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_named() {
    let command = CommandConfig {
        program: "/nonexistent/llama-server".into(),
        ..shell("")
    };
    let stop = CancellationToken::new();
    let (supervisor, mut states) = Supervisor::new(command, || async { true }, stop.clone());
    let run = tokio::spawn(quick(supervisor).run());
    let state = until(&mut states, |state| matches!(state, Process::Down(_))).await;
    let reason = state.not_ready().expect("down");
    assert!(reason.contains("/nonexistent/llama-server"), "{reason}");
    stop.cancel();
    timeout(SOON, run).await.expect("in time").expect("ends");
}
