//! What is asked of several nodes, of which some lag, fall silent or disagree.

use std::sync::Arc;

use alloy::primitives::Address;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;

fn reply(code: i64, message: &'static str) -> ErrorPayload {
    ErrorPayload {
        code,
        message: message.into(),
        data: None,
    }
}

#[test]
fn a_pools_answer_is_read_by_its_words() {
    let read = |code, message| match pool_reply(&reply(code, message)) {
        Ok(()) => Ok(()),
        Err(Fault::Answer(error)) => Err(error),
        Err(Fault::Transport(_)) => Err(ChainError::Unavailable("transport".into())),
    };
    assert_eq!(read(-32000, "already known"), Ok(()));
    assert_eq!(read(-32003, "transaction already imported"), Ok(()));
    assert_eq!(
        read(-32000, "nonce too low: next nonce 5, tx nonce 4"),
        Err(ChainError::NonceUsed)
    );
    assert_eq!(
        read(-32000, "replacement transaction underpriced"),
        Err(ChainError::Underpriced)
    );
    assert_eq!(
        read(
            -32000,
            "max fee per gas less than block base fee: address 0x1"
        ),
        Err(ChainError::Underpriced)
    );
    assert!(matches!(
        read(-32000, "gas limit too high"),
        Err(ChainError::Refused(_))
    ));
    assert!(matches!(
        read(-32005, "rate limit"),
        Err(ChainError::Unavailable(_))
    ));
}

#[test]
fn a_key_in_an_address_is_not_shown() {
    let url = "https://node.example/v2/SECRET";
    let endpoint = Endpoint::new(url, Duration::from_secs(1)).expect("a url");
    let error = RpcError::ErrorResp(reply(-32603, "no route for https://node.example/v2/SECRET"));
    assert!(!endpoint.classify(&error).to_string().contains("SECRET"));
}

#[tokio::test]
async fn nobody_at_home_is_unavailable() {
    let config = RpcConfig {
        urls: vec!["http://127.0.0.1:1".into(), "http://127.0.0.1:2".into()],
        timeout: Duration::from_secs(1),
        ..RpcConfig::default()
    };
    let rpc = Rpc::new(config, 31337).expect("a valid configuration");
    assert!(rpc.latest().await.is_err_and(|e| e.is_unavailable()));
    assert!(
        rpc.check_chain(31337)
            .await
            .is_err_and(|e| e.is_unavailable())
    );
}

/// What a node of the test says.
enum Say {
    Yes(Value),
    No(i64, &'static str),
    Nothing,
}

type Answers = dyn Fn(&str) -> Say + Send + Sync;

/// A node of chain 31337 at block `head`, that answers all other questions as told. Returns its
/// address; it ends with the test.
async fn node(head: u64, answers: impl Fn(&str) -> Say + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let answers: Arc<Answers> = Arc::new(move |method| match method {
        "eth_chainId" => Say::Yes(json!("0x7a69")),
        "eth_blockNumber" => Say::Yes(json!(format!("{head:#x}"))),
        other => answers(other),
    });
    tokio::spawn(async move {
        while let Ok((caller, _)) = listener.accept().await {
            tokio::spawn(serve(caller, Arc::clone(&answers)));
        }
    });
    url
}

/// One connection: question after question.
async fn serve(caller: TcpStream, answers: Arc<Answers>) -> std::io::Result<()> {
    let mut caller = BufReader::new(caller);
    loop {
        let mut length = 0;
        let mut line = String::new();
        while caller.read_line(&mut line).await? > 2 {
            let lower = line.to_lowercase();
            if let Some(bytes) = lower.strip_prefix("content-length:") {
                length = bytes.trim().parse().expect("a number");
            }
            line.clear();
        }
        let mut body = vec![0; length];
        caller.read_exact(&mut body).await?;
        let question: Value = serde_json::from_slice(&body)?;
        let id = &question["id"];
        let reply = match answers(question["method"].as_str().unwrap_or_default()) {
            Say::Yes(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
            Say::No(code, message) => {
                let error = json!({ "code": code, "message": message });
                json!({ "jsonrpc": "2.0", "id": id, "error": error })
            }
            Say::Nothing => std::future::pending().await,
        };
        let reply = reply.to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", reply.len());
        caller.write_all((head + &reply).as_bytes()).await?;
    }
}

fn rpc(urls: &[&String]) -> Rpc {
    within(Duration::from_secs(60), urls)
}

/// With a limit that is waited for where a node is silent.
fn within(timeout: Duration, urls: &[&String]) -> Rpc {
    let config = RpcConfig {
        urls: urls.iter().map(|url| (*url).clone()).collect(),
        timeout,
        ..RpcConfig::default()
    };
    Rpc::new(config, 31337).expect("a valid configuration")
}

fn receipt(block: u64) -> Value {
    let zero = B256::ZERO;
    json!({
        "transactionHash": zero, "transactionIndex": "0x0", "blockHash": zero,
        "blockNumber": format!("{block:#x}"), "from": Address::ZERO, "to": Address::ZERO,
        "cumulativeGasUsed": "0x1", "gasUsed": "0x1", "contractAddress": null, "logs": [],
        "status": "0x1", "logsBloom": format!("0x{}", "0".repeat(512)), "type": "0x2",
        "effectiveGasPrice": "0x1",
    })
}

#[tokio::test]
async fn regression_a_node_that_is_behind_is_passed_over_whatever_it_is_asked() {
    let says = |number: u8| {
        move |method: &str| match method {
            "eth_getTransactionReceipt" => Say::Yes(receipt(number.into())),
            "eth_call" => Say::Yes(json!(format!("0x{number:02x}"))),
            _ => Say::Yes(json!(format!("{number:#x}"))),
        }
    };
    let behind = node(100 - heads::MOST_BEHIND - 1, says(1)).await;
    let current = node(100, says(2)).await;
    let call = Call {
        from: Address::ZERO,
        to: Address::ZERO,
        data: Bytes::new(),
    };
    // Although it is the preferred one, and nobody ever asked it for the newest block.
    let rpc = rpc(&[&behind, &current]);
    let who = Address::ZERO;
    assert_eq!(rpc.gas_balance(who).await, Ok(2));
    assert_eq!(rpc.call(&call).await, Ok(Bytes::from([2])));
    assert_eq!(rpc.estimate(&call).await, Ok(2));
    let nonces = rpc.nonces(who).await.expect("answers");
    assert_eq!((nonces.mined, nonces.free), (2, 2));
    let outcome = rpc.outcome(B256::ZERO).await.expect("answers");
    assert_eq!(outcome.expect("is mined").block, 2);
    // A few blocks are no matter: preference decides.
    let behind = node(100 - heads::MOST_BEHIND, says(1)).await;
    assert_eq!(
        self::rpc(&[&behind, &current]).gas_balance(who).await,
        Ok(1)
    );
}

#[tokio::test]
async fn regression_what_a_silent_node_may_have_taken_is_not_given_up_because_another_refuses_it() {
    let silent = |method: &str| match method {
        "eth_sendRawTransaction" => Say::Nothing,
        _ => Say::Yes(Value::Null),
    };
    let refuses = |method: &str| match method {
        "eth_sendRawTransaction" => Say::No(-32003, "gas limit too high"),
        _ => Say::Yes(Value::Null),
    };
    let (silent, refuses) = (node(7, silent).await, node(7, refuses).await);
    let raw = Bytes::from([2, 0]);
    let sent = within(Duration::from_millis(500), &[&silent, &refuses]);
    let sent = sent.send(&raw).await;
    assert!(
        sent.as_ref().is_err_and(ChainError::is_unavailable),
        "{sent:?}"
    );
    // What nobody can have taken is refused at once.
    let nobody = "http://127.0.0.1:1".to_owned();
    for urls in [vec![&refuses], vec![&nobody, &refuses]] {
        let sent = rpc(&urls).send(&raw).await;
        assert!(matches!(sent, Err(ChainError::Refused(_))), "{sent:?}");
    }
}

#[tokio::test]
async fn a_receipt_that_one_node_has_is_found_however_many_have_none() {
    let none = |_: &str| Say::Yes(Value::Null);
    let (none, has) = (node(7, none).await, node(7, |_| Say::Yes(receipt(6))).await);
    let dead = "http://127.0.0.1:1".to_owned();
    let hash = B256::ZERO;
    let found = rpc(&[&none, &dead, &has]).outcome_anywhere(hash).await;
    assert_eq!(found.expect("answers").expect("is mined").block, 6);
    let rpc = rpc(&[&none, &dead]);
    assert_eq!(rpc.outcome_anywhere(hash).await, Ok(None));
    assert!(self::rpc(&[&dead]).outcome_anywhere(hash).await.is_err());
}

/// As [`rpc`], but a node that says nothing is waited for longer than any test.
fn patient(urls: &[&String]) -> Rpc {
    let config = RpcConfig {
        urls: urls.iter().map(|url| (*url).clone()).collect(),
        timeout: Duration::from_secs(3600),
        ..RpcConfig::default()
    };
    Rpc::new(config, 31337).expect("a valid configuration")
}

async fn soon<T>(answer: impl Future<Output = T>) -> T {
    let answer = tokio::time::timeout(Duration::from_secs(60), answer).await;
    answer.expect("does not wait for the silent one")
}

#[tokio::test]
async fn regression_a_silent_node_keeps_nobody_waiting_for_what_another_knows() {
    let silent = node(7, |_| Say::Nothing).await;
    let has = node(7, |method| match method {
        "eth_sendRawTransaction" => Say::Yes(json!(B256::ZERO)),
        _ => Say::Yes(receipt(6)),
    });
    let has = has.await;
    let rpc = patient(&[&silent, &has]);
    let found = soon(rpc.outcome_anywhere(B256::ZERO)).await;
    assert_eq!(found.expect("answers").expect("is mined").block, 6);
    let raw = Bytes::from([2, 0]);
    assert_eq!(soon(rpc.spread(&raw)).await.word, Ok(()));
    let rests = rpc.0.endpoints[0].rests_until();
    assert!(rests.is_some(), "the next is not kept waiting at all");
}

#[tokio::test]
async fn regression_a_silent_node_that_rests_is_only_glanced_at() {
    let silent = node(7, |_| Say::Nothing).await;
    let refuses = node(7, |method| match method {
        "eth_sendRawTransaction" => Say::No(-32003, "gas limit too high"),
        _ => Say::Yes(Value::Null),
    });
    let refuses = refuses.await;
    let rpc = patient(&[&silent, &refuses]);
    let day = Duration::from_secs(86_400);
    rpc.0.endpoints[0].failed(Instant::now() + day);
    assert_eq!(soon(rpc.outcome_anywhere(B256::ZERO)).await, Ok(None));
    let raw = Bytes::from([2, 0]);
    let told = soon(rpc.spread(&raw)).await;
    assert!(matches!(told.word, Err(ChainError::Refused(_))), "{told:?}");
    assert!(!told.by_all, "the silent one may have it");
    let told = soon(patient(&[&refuses]).spread(&raw)).await;
    assert!(matches!(told.word, Err(ChainError::Refused(_))) && told.by_all);
}

#[tokio::test]
async fn what_one_node_finds_too_cheap_is_not_refused_by_all_in_whatever_order_they_answer() {
    let says = |message: &'static str| {
        move |method: &str| match method {
            "eth_sendRawTransaction" => Say::No(-32000, message),
            _ => Say::Yes(Value::Null),
        }
    };
    let refuses = node(7, says("gas limit too high")).await;
    let cheap = node(7, says("max fee per gas less than block base fee")).await;
    let raw = Bytes::from([2, 0]);
    for urls in [[&refuses, &cheap], [&cheap, &refuses]] {
        let told = rpc(&urls).spread(&raw).await;
        assert_eq!(told.word, Err(ChainError::Underpriced));
        assert!(told.by_all);
    }
}
