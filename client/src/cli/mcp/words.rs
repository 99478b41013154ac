//! What an agent reads and writes: the tools, what each takes, and what it gives back. The doc
//! comments of the fields are what the agent is told.

use farthing_protocol::amount::Amount;
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use rmcp::schemars::{self, JsonSchema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::report::calendar::moment;
use crate::report::{ModelListing, PaymentReport, ReceiptReport, RouteChoice, RouteDropped, Token};

/// The most rows of one answer.
pub(super) const MOST_ROWS: usize = 100;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListModels {
    /// Only models whose id contains this
    #[serde(default)]
    pub(super) search: Option<String>,
}

/// A question: what `chat` buys and `quote` prices.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(super) struct Question {
    /// The model's id, as list_models names it. Left out: the cheapest that chats
    #[serde(default)]
    pub(super) model: Option<String>,
    /// What to ask. Give either this or messages
    #[serde(default)]
    pub(super) prompt: Option<String>,
    /// What the model is to be or to mind, put before the prompt
    #[serde(default)]
    pub(super) system: Option<String>,
    /// A whole conversation, as OpenAI's chat completions take it
    #[serde(default)]
    pub(super) messages: Option<Vec<Map<String, Value>>>,
    /// The longest answer, in tokens. It bounds the cost: without it, the model's longest answer must be affordable
    #[serde(default)]
    pub(super) max_tokens: Option<u32>,
    /// Any other field of a chat completion, such as temperature, tools or response_format, and `provider` for the choice of sellers
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListReceipts {
    /// At most so many, the newest first; 20 if left out, 100 at most
    #[serde(default)]
    pub(super) limit: Option<u32>,
    /// Only of this model
    #[serde(default)]
    pub(super) model: Option<String>,
}

/// An amount of the payment token.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct Money {
    /// In the token's smallest units, exactly
    atoms: String,
    /// As people read it
    shown: String,
}

impl Money {
    pub(super) fn of(token: &Token, amount: Amount) -> Self {
        Self {
            atoms: amount.to_string(),
            shown: token.show(amount),
        }
    }

    pub(super) fn shown(&self) -> &str {
        &self.shown
    }
}

/// What this session may spend.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Session {
    /// The most one call may cost
    pub(super) per_call: Money,
    /// The most all calls of this session may cost
    pub(super) limit: Money,
    /// What they have cost
    pub(super) spent: Money,
    /// What is left for further calls
    pub(super) left: Money,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Models {
    pub(super) models: Vec<ModelRow>,
    /// How many more there are; search narrows the list
    pub(super) more: usize,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ModelRow {
    id: String,
    /// How many sellers offer it now
    sellers: u32,
    /// Where it can be used: chat, completions, embeddings
    endpoints: Vec<String>,
    /// What its sellers say it can do beside text
    features: Vec<String>,
    /// Tokens of prompt and answer together
    context: u32,
    /// The longest answer in tokens
    max_output: u32,
    /// The cheapest price of prompt tokens, per million
    price_input: String,
    /// The cheapest price of an answer's tokens, per million
    price_output: String,
}

impl ModelRow {
    pub(super) fn of(token: &Token, model: ModelListing) -> Self {
        Self {
            sellers: model.sellers,
            endpoints: model.endpoints.iter().map(ToString::to_string).collect(),
            features: model.features,
            context: model.context,
            max_output: model.max_output,
            price_input: token.show_price(model.cheapest.input),
            price_output: token.show_price(model.cheapest.output),
            id: model.id,
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Quote {
    /// The sellers that would be asked, in this order
    pub(super) sellers: Vec<QuoteRow>,
    /// Those that would not be, and why
    pub(super) left_out: Vec<LeftOut>,
    /// How many offer the model in all
    pub(super) on_offer: usize,
    pub(super) session: Session,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct QuoteRow {
    seller: String,
    model: String,
    /// What it is expected to cost
    expected: Money,
    /// What it may cost at most; nothing beyond this is ever paid
    at_most: Money,
    /// Milliseconds to the first token, as expected
    first_token_ms: f64,
    /// The chance that it works, 0 to 1
    success: f64,
    /// The choice in one line
    why: String,
}

impl QuoteRow {
    pub(super) fn of(token: &Token, choice: RouteChoice) -> Self {
        Self {
            seller: choice.seller.to_string(),
            model: choice.model,
            expected: Money::of(token, choice.cost),
            at_most: Money::of(token, choice.max_cost),
            first_token_ms: choice.first_token_ms,
            success: choice.success,
            why: choice.why,
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct LeftOut {
    seller: String,
    model: String,
    reason: String,
}

impl From<RouteDropped> for LeftOut {
    fn from(dropped: RouteDropped) -> Self {
        Self {
            seller: dropped.seller.to_string(),
            model: dropped.model,
            reason: dropped.reason,
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Answered {
    /// The answer's text; empty when the model calls tools instead
    pub(super) text: String,
    /// The answer as the model's server gave it, with tool calls if there are any
    pub(super) message: Map<String, Value>,
    /// Why it ends here: stop, length, tool_calls
    pub(super) finish_reason: Option<String>,
    /// Tokens, as the seller counted them
    pub(super) usage: Option<Map<String, Value>>,
    pub(super) model: String,
    pub(super) seller: String,
    /// The purchase's id; its receipt has the same
    pub(super) request: String,
    /// What it has cost
    pub(super) charged: Money,
    pub(super) session: Session,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Balance {
    /// The address that pays; sending the token there fills the wallet
    pub(super) payer: String,
    /// What the wallet holds; unknown while the chain is away
    pub(super) wallet: Option<Money>,
    /// Deposited with sellers and not used
    pub(super) in_channels: Money,
    /// Promised to sellers since midnight (UTC), by everything that uses this wallet
    pub(super) today: Money,
    /// The most that may be promised in a day
    pub(super) per_day: Money,
    /// Promised ever
    pub(super) total: Money,
    /// The most that may ever be
    pub(super) total_limit: Money,
    /// The most any one purchase may cost
    pub(super) per_purchase: Money,
    /// How many purchases wait for a person's yes
    pub(super) waiting: usize,
    pub(super) session: Session,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Receipts {
    pub(super) receipts: Vec<ReceiptRow>,
    /// Whether there are more than were asked for
    pub(super) more: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReceiptRow {
    /// The purchase's id
    request: String,
    seller: String,
    model: Option<String>,
    /// When it ended
    at: String,
    /// Tokens of the prompt; unknown for a seller without signed receipts
    prompt_tokens: Option<u32>,
    /// Tokens of the answer; unknown for a seller without signed receipts
    completion_tokens: Option<u32>,
    charged: Money,
    /// How it ended, or how it was paid at a seller without signed receipts
    ending: String,
    /// What is wrong with it, if this buyer does not agree
    dispute: Option<String>,
}

impl ReceiptRow {
    pub(super) fn of(token: &Token, held: ReceiptReport) -> Self {
        let receipt = &held.signed.receipt;
        Self {
            request: receipt.request.to_string(),
            seller: held.signed.seller.to_string(),
            model: held.model,
            at: moment(receipt.finished),
            prompt_tokens: Some(receipt.usage.prompt),
            completion_tokens: Some(receipt.usage.completion),
            charged: Money::of(token, receipt.charged),
            ending: format!("{:?}", receipt.ending).to_lowercase(),
            dispute: held.dispute,
        }
    }

    pub(super) fn paid(token: &Token, held: PaymentReport) -> Self {
        let payment = held.payment;
        Self {
            request: payment.request.to_string(),
            seller: payment.seller.to_string(),
            model: Some(payment.model),
            at: moment(payment.at),
            prompt_tokens: None,
            completion_tokens: None,
            charged: Money::of(token, payment.charged),
            ending: format!("{:?}", payment.scheme).to_lowercase(),
            dispute: payment.dispute,
        }
    }
}

/// The tools, with what each takes and gives.
pub(super) fn tools() -> Vec<Tool> {
    let looks = || ToolAnnotations::new().read_only(true).open_world(true);
    let tool = |name, about| Tool::new(name, about, JsonObject::new());
    vec![
        tool(
            "list_models",
            "Lists the models that sellers on the market offer now, with their cheapest prices.",
        )
        .with_input_schema::<ListModels>()
        .with_output_schema::<Models>()
        .with_annotations(looks()),
        tool(
            "quote",
            "Says what a question would cost, at which sellers and why, within what this session may spend. Nothing is bought.",
        )
        .with_input_schema::<Question>()
        .with_output_schema::<Quote>()
        .with_annotations(looks()),
        tool(
            "chat",
            "Asks a model and pays the seller for the answer, within the limits of this session. Gives the answer, what it cost and who sold it.",
        )
        .with_input_schema::<Question>()
        .with_output_schema::<Answered>()
        .with_annotations(ToolAnnotations::new().read_only(false).destructive(false)),
        tool(
            "balance",
            "Says what the wallet holds, what was spent, and what this session may still spend.",
        )
        .with_input_schema::<Nothing>()
        .with_output_schema::<Balance>()
        .with_annotations(looks()),
        tool(
            "receipts",
            "Lists what was bought and what each answer cost, by the sellers' signed receipts, the newest first.",
        )
        .with_input_schema::<ListReceipts>()
        .with_output_schema::<Receipts>()
        .with_annotations(looks()),
    ]
}
