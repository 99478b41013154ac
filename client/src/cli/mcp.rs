//! `farthing mcp`: a running gateway as tools of an agent, by the Model Context Protocol over
//! standard input and output.
//!
//! It reads the market and the books through the control socket and buys through the gateway's
//! endpoint, as `farthing chat` does, within limits of its own ([`crate::config::Mcp`]): what a
//! call may cost is set aside before it is made, and the gateway refuses what could cost more
//! before it asks anybody. It ends with its standard input.

mod budget;
mod words;

use axum::http::HeaderName;
use farthing_protocol::amount::Amount;
use farthing_protocol::offer::Endpoint;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
    JsonObject, ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::cli::chat::{self, Door};
use crate::cli::mcp::budget::{Budget, Hold};
use crate::cli::mcp::words::{
    Answered, Balance, LeftOut, ListModels, ListReceipts, MOST_ROWS, ModelRow, Models, Money,
    Nothing, Question, Quote, QuoteRow, ReceiptRow, Receipts, Session, tools,
};
use crate::cli::remote::{Remote, RemoteError};
use crate::cli::{Failure, render};
use crate::config::Config;
use crate::gateway::exchange::{CHARGED, MODEL, REQUEST_ID, SELLER};
use crate::report::{ReceiptQuery, RouteWish, Token};

/// The most calls under way at once.
const MOST_CALLS: usize = 16;
/// What a message has around a request.
const ENVELOPE: usize = 64 * 1024;
/// How many receipts are listed if nobody says.
const ROWS: u32 = 20;

const INSTRUCTIONS: &str = "Farthing buys answers of language models from independent sellers and pays each by the token. `list_models` shows what is on offer, `quote` what a question would cost, `chat` buys the answer. What this session may spend is limited; `balance` says what is left. Set max_tokens: it bounds what an answer may cost.";

/// Serves an agent until it closes standard input.
///
/// # Errors
/// [`Failure::Mcp`] when the program at the other end speaks something else.
pub(in crate::cli) async fn serve(config: Config, key: Option<String>) -> Result<(), Failure> {
    let most = config.gateway.max_body.saturating_add(ENVELOPE);
    let desk = Desk::new(config, key)?;
    let transport = AsyncRwTransport::new(tokio::io::stdin(), tokio::io::stdout());
    let transport = transport.with_max_line_length(most);
    let failed = |error: String| Failure::Mcp(error);
    let service = desk.serve(transport).await;
    let service = service.map_err(|error| failed(error.to_string()))?;
    let ended = service.waiting().await;
    ended.map_err(|error| failed(error.to_string()))?;
    Ok(())
}

/// What every tool needs.
#[derive(Debug)]
struct Desk {
    config: Config,
    door: Door,
    token: Token,
    budget: Budget,
    calls: Semaphore,
}

/// Why a tool does not do it, in words that the agent can act on.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error("{0}")]
    Arguments(String),
    #[error("nobody offers a model that chats now; try `list_models` later")]
    NoModel,
    #[error("{MOST_CALLS} calls are under way; wait until one of them ends")]
    TooMany,
    #[error(
        "this session may spend {limit} atoms and they are spent or set aside for calls under way; \
         whoever runs this program can raise `mcp.per_session`, or start it anew"
    )]
    Spent { limit: Amount },
    /// The gateway's own words; of a request that costs too much, with the limits of the session.
    #[error("{message}{limits}{counted}")]
    Gateway {
        message: String,
        limits: String,
        counted: String,
    },
    #[error("the call was cancelled; {0} atoms are counted as spent, the most it may have cost")]
    Cancelled(Amount),
}

type Told = Result<CallToolResult, Refused>;

impl ServerHandler for Desk {
    fn get_info(&self) -> ServerConfig {
        let can = ServerCapabilities::builder().enable_tools().build();
        let who = Implementation::new("farthing", env!("CARGO_PKG_VERSION"));
        ServerConfig::new(can)
            .with_server_info(who)
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools()))
    }

    async fn call_tool(
        &self,
        call: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let given = call.arguments.unwrap_or_default();
        let told = match self.calls.try_acquire() {
            Err(_) => Err(Refused::TooMany),
            Ok(_place) => match call.name.as_ref() {
                "list_models" => self.list_models(given).await,
                "quote" => self.quote(given).await,
                "chat" => self.chat(given, &context).await,
                "balance" => self.balance(given).await,
                "receipts" => self.receipts(given).await,
                other => {
                    let text = format!("there is no tool `{other}`");
                    return Err(ErrorData::invalid_params(text, None));
                }
            },
        };
        let told = told.unwrap_or_else(|refused| {
            CallToolResult::error(vec![ContentBlock::text(refused.to_string())])
        });
        Ok(told.into())
    }
}

impl Desk {
    fn new(config: Config, key: Option<String>) -> Result<Self, RemoteError> {
        Ok(Self {
            door: Door::new(&config, key)?,
            token: render::token(&config.chain),
            budget: Budget::new(config.mcp.clone()),
            calls: Semaphore::new(MOST_CALLS),
            config,
        })
    }

    /// The gateway that runs now: it may have been started after this program.
    fn remote(&self) -> Result<Remote, RemoteError> {
        Remote::new(&self.config)
    }

    fn money(&self, amount: Amount) -> Money {
        Money::of(&self.token, amount)
    }

    fn session(&self) -> Session {
        let limits = self.budget.limits();
        Session {
            per_call: self.money(limits.per_call),
            limit: self.money(limits.per_session),
            spent: self.money(self.budget.spent()),
            left: self.money(self.budget.left()),
        }
    }

    async fn list_models(&self, given: JsonObject) -> Told {
        let ListModels { search } = read(given)?;
        let mut models = self.remote()?.models().await?;
        if let Some(search) = search {
            models.retain(|model| model.id.contains(&search));
        }
        let more = models.len().saturating_sub(MOST_ROWS);
        let shown = models.into_iter().take(MOST_ROWS);
        Ok(tell(&Models {
            models: shown
                .map(|model| ModelRow::of(&self.token, model))
                .collect(),
            more,
        }))
    }

    async fn quote(&self, given: JsonObject) -> Told {
        let body = self.body(read(given)?, self.budget.most()).await?;
        let wish = RouteWish {
            endpoint: Endpoint::Chat,
            body: body.to_string(),
        };
        let report = self.remote()?.route(&wish).await?;
        let (kept, dropped) = (report.kept.into_iter(), report.dropped.into_iter());
        let row = |choice| QuoteRow::of(&self.token, choice);
        Ok(tell(&Quote {
            sellers: kept.take(MOST_ROWS).map(row).collect(),
            left_out: dropped.take(MOST_ROWS).map(LeftOut::from).collect(),
            on_offer: report.on_offer,
            session: self.session(),
        }))
    }

    /// The request's body, which may cost at most so much.
    async fn body(&self, question: Question, most: Amount) -> Result<Value, Refused> {
        let wrong = |text: &str| Refused::Arguments(text.to_owned());
        let mut messages = Vec::new();
        if let Some(system) = question.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        match (question.prompt, question.messages) {
            (Some(prompt), None) => messages.push(json!({"role": "user", "content": prompt})),
            (None, Some(given)) => messages.extend(given.into_iter().map(Value::Object)),
            _ => return Err(wrong("give either `prompt` or `messages`")),
        }
        let model = match question.model {
            Some(model) => model,
            None => {
                let models = self.remote()?.models().await?;
                chat::cheapest(&models).ok_or(Refused::NoModel)?
            }
        };
        let mut body = question.rest;
        let provider = body.entry("provider").or_insert_with(|| json!({}));
        let Some(provider) = provider.as_object_mut() else {
            return Err(wrong("`provider` must be an object"));
        };
        let own = provider
            .get("max_cost")
            .map(|own| own.as_str()?.parse().ok());
        let own: Amount = match own {
            None => most,
            Some(own) => own.ok_or_else(|| wrong("`provider.max_cost` is a text of atoms"))?,
        };
        provider.insert("max_cost".into(), json!(own.min(most)));
        body.remove("stream_options");
        body.insert("stream".into(), Value::Bool(false));
        body.insert("model".into(), Value::from(model));
        body.insert("messages".into(), Value::from(messages));
        if let Some(tokens) = question.max_tokens {
            body.insert("max_tokens".into(), Value::from(tokens));
        }
        Ok(Value::Object(body))
    }

    async fn chat(&self, given: JsonObject, context: &RequestContext<RoleServer>) -> Told {
        let question = read(given)?;
        let limit = self.budget.limits().per_session;
        let hold = self.budget.hold().ok_or(Refused::Spent { limit })?;
        let body = match self.body(question, hold.most()).await {
            Ok(body) => body,
            Err(refused) => {
                hold.cost(Amount::ZERO);
                return Err(refused);
            }
        };
        let most = hold.most();
        tokio::select! {
            told = self.buy(&body, hold) => told,
            () = context.ct.cancelled() => Err(Refused::Cancelled(most)),
        }
    }

    async fn buy(&self, body: &Value, hold: Hold) -> Told {
        let response = match self.door.ask(body).await {
            Ok(response) => response,
            Err(error) => {
                // Without a connection nothing was asked for.
                if matches!(error, RemoteError::NotRunning { .. }) {
                    hold.cost(Amount::ZERO);
                }
                return Err(error.into());
            }
        };
        let status = response.status();
        let head = |name: HeaderName| {
            let value = response.headers().get(name)?;
            Some(value.to_str().ok()?.to_owned())
        };
        let charged = head(CHARGED).and_then(|atoms| atoms.parse().ok());
        let [model, seller, request] =
            [MODEL, SELLER, REQUEST_ID].map(|name| head(name).unwrap_or_default());
        let document: Value = response.json().await.map_err(RemoteError::from)?;
        let (true, Some(charged)) = (status.is_success(), charged) else {
            return Err(self.refused(status.as_u16(), &document["error"], hold));
        };
        hold.cost(charged);
        let answer = &document["choices"][0];
        let message = object(&answer["message"]).unwrap_or_default();
        let text = message.get("content").and_then(Value::as_str);
        let text = text.unwrap_or_default().to_owned();
        let finish = answer["finish_reason"].as_str();
        let answered = Answered {
            finish_reason: finish.map(str::to_owned),
            usage: object(&document["usage"]),
            charged: self.money(charged),
            session: self.session(),
            text,
            message,
            model,
            seller,
            request,
        };
        let mut told = tell(&answered);
        if !answered.text.is_empty() {
            // Hosts that read only text get the answer first, and what it cost.
            let cost = format!("[{}, {}]", answered.charged.shown(), answered.request);
            told.content = vec![ContentBlock::text(answered.text), ContentBlock::text(cost)];
        }
        Ok(told)
    }

    /// An error of the gateway. Where it may come after a payment, all of it counts as spent.
    fn refused(&self, status: u16, error: &Value, hold: Hold) -> Refused {
        let code = error["code"].as_str().unwrap_or_default();
        let message = error["message"].as_str();
        let message = message.unwrap_or("the gateway's answer has no words");
        let limits = match code {
            "spend_limit_reached" => {
                let (call, left) = (self.budget.limits().per_call, self.budget.left());
                let left = left.saturating_add(hold.most());
                format!(
                    " (this session: {call} atoms for one call, `mcp.per_call`; {left} left, `mcp.per_session`)"
                )
            }
            _ => String::new(),
        };
        let counted = match status {
            // Refused before anybody was asked, or by whoever was, before there was anything.
            400..=499 | 503 => {
                hold.cost(Amount::ZERO);
                String::new()
            }
            _ => format!(
                " ({} atoms are counted as spent, the most it may have cost)",
                hold.most()
            ),
        };
        Refused::Gateway {
            message: render::safe(message),
            limits,
            counted,
        }
    }

    async fn balance(&self, given: JsonObject) -> Told {
        let Nothing {} = read(given)?;
        let wallet = self.remote()?.wallet().await?;
        Ok(tell(&Balance {
            payer: wallet.payer.to_string(),
            wallet: wallet.balance.map(|held| self.money(held)),
            in_channels: self.money(wallet.in_channels),
            today: self.money(wallet.today.spent),
            per_day: self.money(wallet.today.limit),
            total: self.money(wallet.total.spent),
            total_limit: self.money(wallet.total.limit),
            per_purchase: self.money(wallet.per_purchase),
            waiting: wallet.waiting,
            session: self.session(),
        }))
    }

    async fn receipts(&self, given: JsonObject) -> Told {
        let ListReceipts { limit, model } = read(given)?;
        let most = u32::try_from(MOST_ROWS).unwrap_or(u32::MAX);
        let limit = limit.unwrap_or(ROWS).clamp(1, most);
        let query = ReceiptQuery {
            model,
            limit,
            ..ReceiptQuery::default()
        };
        let page = self.remote()?.receipts(&query).await?;
        let token = &self.token;
        let held = page.receipts.into_iter();
        let held = held.map(|held| (held.signed.receipt.finished, ReceiptRow::of(token, held)));
        let paid = page.payments.into_iter();
        let paid = paid.map(|held| (held.payment.at, ReceiptRow::paid(token, held)));
        let mut rows: Vec<_> = held.chain(paid).collect();
        rows.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let limit = usize::try_from(limit).unwrap_or(MOST_ROWS);
        Ok(tell(&Receipts {
            more: page.next.is_some() || rows.len() > limit,
            receipts: rows.into_iter().take(limit).map(|(_, row)| row).collect(),
        }))
    }
}

/// The arguments of a call.
fn read<T: DeserializeOwned>(given: JsonObject) -> Result<T, Refused> {
    let read = serde_json::from_value(Value::Object(given));
    read.map_err(|error| Refused::Arguments(format!("the arguments cannot be read: {error}")))
}

/// A report as the protocol has it: as JSON, and as the same JSON in text.
fn tell(report: &impl Serialize) -> CallToolResult {
    match serde_json::to_value(report) {
        Ok(value) => CallToolResult::structured(value),
        Err(error) => CallToolResult::error(vec![ContentBlock::text(error.to_string())]),
    }
}

fn object(value: &Value) -> Option<Map<String, Value>> {
    value.as_object().cloned()
}
