//! What goes wrong has its status, its type and its code, in the shape of OpenAI's errors.

use super::*;

#[tokio::test]
async fn an_error_before_the_first_event_has_its_status_also_in_a_stream() {
    let gateway = start(|_| {
        let failed = InferError::Failed { attempts: vec![] };
        Ok(whole(vec![Err(failed)]))
    })
    .await;
    let reply = gateway.post(CHAT, STREAM).await;
    assert_eq!(reply.error().0, 502);
    assert_eq!(reply.header("x-should-retry"), Some("false"));
}

/// Every failure with its status, type and code.
fn table() -> Vec<(InferError, u16, &'static str, &'static str)> {
    let model = || "no/such".to_owned();
    let reason = || "reason".to_owned();
    let upstream = |status, body: &'static str| InferError::Upstream {
        status,
        body: Bytes::from_static(body.as_bytes()),
    };
    let empty = Errand::EmptyWallet {
        address: "0x09".into(),
        balance: Amount::ZERO,
        needed: Amount::atoms(5),
    };
    let attempts = vec![Attempt {
        seller: seller(),
        model: model(),
        status: 502,
        reason: reason(),
    }];
    let theirs = r#"{"error":{"message":"m","param":null,"type":"t","code":"c"}}"#;
    let (request, quota, server) = (
        "invalid_request_error",
        "insufficient_quota",
        "server_error",
    );
    let no_seller = InferError::NoSeller {
        model: model(),
        reason: reason(),
    };
    let busy = InferError::Busy {
        retry_after_ms: 1,
        attempts: Vec::new(),
    };
    vec![
        (
            InferError::BadRequest(reason()),
            400,
            request,
            "invalid_request",
        ),
        (
            InferError::TooLarge { len: 2, max: 1 },
            413,
            request,
            "payload_too_large",
        ),
        (
            InferError::UnknownModel { model: model() },
            404,
            request,
            "model_not_found",
        ),
        (no_seller, 503, server, "no_seller"),
        (
            InferError::SpendLimit(reason()),
            402,
            quota,
            "spend_limit_reached",
        ),
        (
            Errand::Approval(reason()).into(),
            402,
            quota,
            "approval_required",
        ),
        (empty.into(), 402, quota, "wallet_empty"),
        (
            InferError::Chain(reason()),
            503,
            server,
            "chain_unavailable",
        ),
        (upstream(422, theirs), 422, "t", "c"),
        (upstream(422, "plain"), 422, request, "upstream_refused"),
        (upstream(401, theirs), 502, server, "upstream_failed"),
        (upstream(200, theirs), 502, server, "upstream_failed"),
        (busy, 429, "rate_limit_error", "sellers_busy"),
        (
            InferError::Failed { attempts },
            502,
            server,
            "sellers_failed",
        ),
        (
            InferError::Interrupted(reason().into()),
            502,
            server,
            "interrupted",
        ),
        (InferError::Internal(reason()), 500, server, "internal"),
    ]
}

#[tokio::test]
async fn every_failure_has_its_status_type_and_code() {
    for (error, status, kind, code) in table() {
        let text = error.to_string();
        let gateway = start(move |_| Err(error.clone())).await;
        let reply = gateway.post(CHAT, PLAIN).await;
        let expected = (status, kind.to_owned(), code.to_owned());
        assert_eq!(reply.error(), expected, "{text}");
    }
}

#[tokio::test]
async fn a_busy_market_says_when_to_come_back() {
    let gateway = start(|_| {
        Err(InferError::Busy {
            retry_after_ms: 1500,
            attempts: Vec::new(),
        })
    })
    .await;
    let reply = gateway.post(CHAT, PLAIN).await;
    assert_eq!(reply.header("retry-after"), Some("2"));
    assert_eq!(reply.header("retry-after-ms"), Some("1500"));
    assert_eq!(reply.header("x-should-retry"), None);
}

#[tokio::test]
async fn a_body_that_is_no_request_buys_nothing() {
    let gateway = start(|_| Err(InferError::Internal("must not be asked".into()))).await;
    for bad in [
        "",
        "{",
        "[]",
        "{\"stream\":1}",
        "{\"model\":\"a\",\"model\":\"b\"}",
    ] {
        let reply = gateway.post(CHAT, bad).await;
        assert_eq!(reply.error().0, 400, "{bad}");
    }
    let reply = gateway.post(CHAT, "{\"stream\":\"yes\"}").await;
    assert_eq!(reply.json()["error"]["param"], "stream");
}

#[tokio::test]
async fn a_body_too_large_is_answered_in_the_openai_shape() {
    let settings = config::Gateway {
        max_body: 1000,
        ..config::Gateway::default()
    };
    let gateway = start_with(settings, |_| Ok(whole(vec![data("{}"), end()]))).await;
    let reply = gateway.post(CHAT, "x".repeat(1001)).await;
    assert_eq!(
        reply.error(),
        (
            413,
            "invalid_request_error".into(),
            "payload_too_large".into()
        )
    );
    // Without a stated length, in pieces.
    let piece = |_| Ok::<_, std::io::Error>("x".repeat(600));
    let pieces = futures::stream::iter((0..3).map(piece));
    let reply = gateway.post(CHAT, reqwest::Body::wrap_stream(pieces)).await;
    assert_eq!(reply.status, 413);
    let full = format!("{PLAIN}{}", " ".repeat(1000 - PLAIN.len()));
    assert_eq!(gateway.post(CHAT, full).await.status, 200);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_in_the_openai_shape() {
    let gateway = start(|_| Ok(answer().1)).await;
    assert_eq!(gateway.get("/v1/nothing").await.error().2, "unknown_path");
    assert_eq!(gateway.get("/").await.error().0, 404);
    let reply = gateway.get(CHAT).await;
    assert_eq!(reply.error().0, 405);
    assert_eq!(reply.header("allow"), Some("POST"));
    assert_eq!(gateway.post("/health", "").await.error().0, 405);
}
