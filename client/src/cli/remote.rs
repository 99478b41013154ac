//! Asks a running gateway through its control socket.

use std::path::PathBuf;
use std::time::Duration;

use alloy::primitives::B256;
use farthing_protocol::evidence::Evidence;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::x402::{ChannelId, PayerSignature};
use reqwest::{Method, RequestBuilder};
use serde::de::DeserializeOwned;

use crate::config::Config;
use crate::gateway::control::{Fault, SOCKET};
use crate::report::{
    ActionReport, ApprovalReport, ChannelAction, ChannelReport, DepositWish, DraftReport,
    HealthReport, ModelListing, OfferReport, PaymentReport, Permit2Report, Permit2Wish,
    ReceiptBook, ReceiptPage, ReceiptQuery, ReceiptReport, RouteReport, RouteWish, SellerReport,
    StretchQuery, WalletReport, Word,
};

/// How long a report may take. An action may wait for a transaction to be confirmed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Nobody serves the socket.
    #[error(
        "no gateway runs on {data_dir}; start one with `farthing gateway`, or name its directory with `--data-dir`"
    )]
    NotRunning {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// The gateway says why.
    #[error("{0}")]
    Refused(String),
    /// The connection failed, or the answer is not a report.
    #[error("the gateway's answer cannot be used: {0}")]
    Broken(#[from] reqwest::Error),
}

/// A running gateway's control socket.
#[derive(Debug)]
pub struct Remote {
    http: reqwest::Client,
    data_dir: PathBuf,
}

impl Remote {
    /// The gateway on this data directory. Nothing is connected yet.
    ///
    /// # Errors
    /// [`RemoteError::NotRunning`] when there is no socket.
    pub fn new(config: &Config) -> Result<Self, RemoteError> {
        let data_dir = config.data_dir.clone();
        let socket = data_dir.join(SOCKET);
        if !socket.exists() {
            return Err(RemoteError::NotRunning { data_dir });
        }
        let builder = reqwest::Client::builder().unix_socket(socket);
        let http = builder.timeout(PATIENCE).no_proxy().build()?;
        Ok(Self { http, data_dir })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://control{path}"))
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, RemoteError> {
        let response = request.send().await.map_err(|error| {
            if error.is_connect() {
                let data_dir = self.data_dir.clone();
                return RemoteError::NotRunning { data_dir };
            }
            error.into()
        })?;
        if response.status().is_success() {
            return Ok(response.json().await?);
        }
        let fault: Fault = response.json().await?;
        Err(RemoteError::Refused(fault.error))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RemoteError> {
        self.send(self.request(Method::GET, path)).await
    }

    /// Whether it can buy.
    ///
    /// # Errors
    /// [`RemoteError`], as all below.
    pub async fn health(&self) -> Result<HealthReport, RemoteError> {
        self.get("/health").await
    }

    /// Whom the router would ask for a request.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn route(&self, wish: &RouteWish) -> Result<RouteReport, RemoteError> {
        self.send(self.request(Method::POST, "/route").json(wish))
            .await
    }

    /// The models on offer.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn models(&self) -> Result<Vec<ModelListing>, RemoteError> {
        self.get("/models").await
    }

    /// Every offer of every model.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn offers(&self) -> Result<Vec<OfferReport>, RemoteError> {
        self.get("/offers").await
    }

    /// What is believed of sellers.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn sellers(&self) -> Result<Vec<SellerReport>, RemoteError> {
        self.get("/sellers").await
    }

    /// The wallet.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn wallet(&self) -> Result<WalletReport, RemoteError> {
        self.get("/wallet").await
    }

    /// Prepares a deposit that a payer elsewhere is to sign.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn prepare(&self, wish: DepositWish) -> Result<DraftReport, RemoteError> {
        let request = self.request(Method::POST, "/wallet/deposits");
        self.send(request.json(&wish)).await
    }

    /// Takes a payer's signature of a prepared deposit, and deposits it.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn import(
        &self,
        id: B256,
        signature: &PayerSignature,
    ) -> Result<ActionReport, RemoteError> {
        let request = self.request(Method::POST, &format!("/wallet/deposits/{id}"));
        self.send(request.json(signature)).await
    }

    /// Lets Permit2 move the payer's tokens.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn allow_permit2(&self, wish: Permit2Wish) -> Result<Permit2Report, RemoteError> {
        let request = self.request(Method::POST, "/wallet/permit2");
        self.send(request.json(&wish)).await
    }

    /// The purchases that want a person's word.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn approvals(&self) -> Result<Vec<ApprovalReport>, RemoteError> {
        self.get("/wallet/approvals").await
    }

    /// A person's word on a purchase.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn approve(&self, id: &str, word: Word) -> Result<ApprovalReport, RemoteError> {
        let digits: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
        let request = self.request(Method::POST, &format!("/wallet/approvals/{digits}"));
        self.send(request.json(&word)).await
    }

    /// The channels.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn channels(&self) -> Result<Vec<ChannelReport>, RemoteError> {
        self.get("/channels").await
    }

    /// Does something with a channel.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn channel(
        &self,
        channel: ChannelId,
        action: ChannelAction,
    ) -> Result<ActionReport, RemoteError> {
        let request = self.request(Method::POST, &format!("/channels/{channel}"));
        self.send(request.json(&action)).await
    }

    /// A page of receipts.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn receipts(&self, query: &ReceiptQuery) -> Result<ReceiptPage, RemoteError> {
        let request = self.request(Method::POST, "/receipts");
        self.send(request.json(query)).await
    }

    /// Some receipts of a channel, in order.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn stretch(
        &self,
        channel: ChannelId,
        from: u64,
    ) -> Result<Vec<ReceiptReport>, RemoteError> {
        let request = self.request(Method::POST, "/receipts/stretch");
        self.send(request.json(&StretchQuery { channel, from }))
            .await
    }

    /// What is needed to check the receipts of each channel.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn books(&self) -> Result<Vec<ReceiptBook>, RemoteError> {
        self.get("/receipts/books").await
    }

    /// The evidence of one receipt.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn evidence(&self, request: RequestId) -> Result<Evidence, RemoteError> {
        let path = format!("/receipts/{request}/evidence");
        self.send(self.request(Method::POST, &path)).await
    }

    /// Payments over plain HTTP.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn payments(&self, query: &ReceiptQuery) -> Result<Vec<PaymentReport>, RemoteError> {
        let request = self.request(Method::POST, "/payments");
        self.send(request.json(query)).await
    }

    /// One purchase's payment over plain HTTP.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn payment(&self, request: RequestId) -> Result<PaymentReport, RemoteError> {
        self.get(&format!("/payments/{request}")).await
    }

    /// One purchase's receipt.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn receipt(&self, request: RequestId) -> Result<ReceiptReport, RemoteError> {
        self.get(&format!("/receipts/{request}")).await
    }
}
