//! A real chain on this machine for tests and demonstrations: anvil with our contracts placed at
//! their canonical addresses.
//!
//! Placing: the constructor is run *at* the target address by an `eth_call` that overrides the
//! code there with the initcode; what it returns is the runtime code, with immutables and cached
//! EIP-712 domains right for that address; `anvil_setCode` then puts it there. Storage that a
//! constructor writes is not carried over; ours write none that matters.
//!
//! Never used against a public chain. Anvil ends with [`LocalChain`].

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::providers::{Provider, RootProvider};
use alloy::rpc::client::RpcClient;
use alloy::sol_types::{SolCall, SolValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::amount::Amount;
use crate::chain::abi::IToken;
use crate::chain::{Chain, ChainError, RpcConfig};
use crate::x402::{Network, PERMIT2, UPTO_PROXY};

/// Where the compiled contracts of this repository are.
pub const ARTIFACTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contracts/artifacts");

/// How long anvil may take to begin listening (it takes 0.2 s), or to mine (it takes 3 ms).
const START_LIMIT: Duration = Duration::from_secs(20);

/// Why there is no local chain.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The binary cannot be run, or ended before it listened.
    #[error("anvil {0} does not start: {1}; install it with `npm install @foundry-rs/anvil@1.7.1`")]
    Start(PathBuf, String),
    /// An artifact is missing or not one.
    #[error("contract artifact {0}: {1}; build them with `make contracts`")]
    Artifact(PathBuf, String),
    /// The chain does not do as told.
    #[error("the local chain refuses {0}: {1}")]
    Rpc(String, String),
    /// The handle cannot be made.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// An anvil that carries a network's contracts.
#[derive(Debug)]
pub struct LocalChain {
    network: Network,
    url: String,
    node: RootProvider,
    /// Killed on drop. `None` when somebody else runs it.
    child: Option<Child>,
}

impl LocalChain {
    /// Starts the anvil at `binary` on a free port and places `network`'s contracts from the
    /// artifacts in `artifacts` ([`ARTIFACTS`]).
    ///
    /// # Errors
    /// Any [`LocalError`].
    pub async fn start(
        binary: &Path,
        network: Network,
        artifacts: &Path,
    ) -> Result<Self, LocalError> {
        let bare = Self::start_bare(binary, network).await?;
        bare.place(artifacts).await?;
        Ok(bare)
    }

    /// Starts an anvil with `network`'s chain id and nothing on it.
    ///
    /// # Errors
    /// [`LocalError::Start`].
    pub async fn start_bare(binary: &Path, network: Network) -> Result<Self, LocalError> {
        let failed = |why: String| LocalError::Start(binary.to_owned(), why);
        let mut child = Command::new(binary)
            .args(["--port", "0", "--chain-id", &network.chain_id.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(e.to_string()))?;
        let url = tokio::time::timeout(START_LIMIT, listening(&mut child))
            .await
            .map_err(|_| failed(format!("not listening after {START_LIMIT:?}")))?
            .ok_or_else(|| failed("it ended before it listened".into()))?;
        Ok(Self {
            child: Some(child),
            ..Self::attach(&url, network)?
        })
    }

    /// An anvil that already runs at `url`; it is left running.
    ///
    /// # Errors
    /// [`LocalError::Rpc`] when the address cannot be read.
    pub fn attach(url: &str, network: Network) -> Result<Self, LocalError> {
        let bad = |why: String| LocalError::Rpc(url.to_owned(), why);
        let parsed = url.parse().map_err(|e| bad(format!("{e}")))?;
        let client = reqwest::Client::builder().no_proxy().build();
        let client = client.map_err(|e| bad(e.to_string()))?;
        Ok(Self {
            network,
            url: url.to_owned(),
            node: RootProvider::new(RpcClient::new_http_with_client(client, parsed)),
            child: None,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The network it carries.
    #[must_use]
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// The process id of the anvil that was started here.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// A configuration that reaches it.
    #[must_use]
    pub fn config(&self) -> RpcConfig {
        RpcConfig {
            urls: vec![self.url.clone()],
            ..RpcConfig::default()
        }
    }

    /// A handle to it.
    ///
    /// # Errors
    /// [`LocalError::Chain`].
    pub fn chain(&self) -> Result<Chain, LocalError> {
        Ok(Chain::connect(self.network.clone(), self.config())?)
    }

    /// Places settlement contract, collector and token at the network's addresses, Permit2 and
    /// the proxy of `upto` at theirs.
    ///
    /// # Errors
    /// [`LocalError::Artifact`], [`LocalError::Rpc`].
    pub async fn place(&self, artifacts: &Path) -> Result<(), LocalError> {
        let network = &self.network;
        let collector_argument = network.settlement.abi_encode();
        let parts = [
            ("BatchSettlement", network.settlement, Vec::new()),
            (
                "ERC3009DepositCollector",
                network.collector,
                collector_argument,
            ),
            ("TestUSD", network.token, Vec::new()),
            ("Permit2", PERMIT2, Vec::new()),
            ("UptoProxy", UPTO_PROXY, PERMIT2.abi_encode()),
        ];
        for (name, address, arguments) in parts {
            let mut code = initcode(&artifacts.join(format!("{name}.json")))?;
            code.extend(arguments);
            self.etch(address, &code.into()).await?;
        }
        Ok(())
    }

    /// Places a contract wallet (EIP-1271) at an address; it wants the signatures of all its
    /// owners.
    ///
    /// # Errors
    /// [`LocalError::Artifact`], [`LocalError::Rpc`].
    pub async fn place_wallet(
        &self,
        at: Address,
        mut owners: Vec<Address>,
    ) -> Result<(), LocalError> {
        owners.sort_unstable();
        let owners: [Address; 2] = owners.try_into().map_err(|_| {
            LocalError::Rpc(
                "a wallet".into(),
                "it has two owners, no more, no fewer".into(),
            )
        })?;
        let mut code = initcode(&Path::new(ARTIFACTS).join("TestWallet.json"))?;
        code.extend(owners.abi_encode());
        self.etch(at, &code.into()).await
    }

    /// Places the contract that checks receipts at an address.
    ///
    /// # Errors
    /// [`LocalError::Artifact`], [`LocalError::Rpc`].
    pub async fn place_verifier(&self, at: Address) -> Result<(), LocalError> {
        let mut code = initcode(&Path::new(ARTIFACTS).join("ReceiptVerifier.json"))?;
        code.extend(self.network.settlement.abi_encode());
        self.etch(at, &code.into()).await
    }

    async fn etch(&self, address: Address, initcode: &Bytes) -> Result<(), LocalError> {
        let overrides = json!({ address.to_string(): { "code": initcode } });
        let call = json!({ "to": address });
        let runtime: Bytes = self.ask("eth_call", (call, "latest", overrides)).await?;
        self.ask::<_, Value>("anvil_setCode", (address, runtime))
            .await?;
        Ok(())
    }

    /// Test tokens for an account, through the test token's open `mint`.
    ///
    /// # Errors
    /// [`LocalError::Rpc`].
    pub async fn mint(&self, to: Address, amount: Amount) -> Result<(), LocalError> {
        let value = U256::from(amount.get());
        let data: Bytes = IToken::mintCall { to, value }.abi_encode().into();
        // Anvil's first account is unlocked and rich.
        let accounts: Vec<Address> = self.ask("eth_accounts", ()).await?;
        let from = accounts.first().copied().unwrap_or_default();
        self.act(from, data).await
    }

    /// Lets a spender move an account's tokens, in a transaction of that account, whose key is
    /// not needed here but whose gas is.
    ///
    /// # Errors
    /// [`LocalError::Rpc`].
    pub async fn approve(
        &self,
        owner: Address,
        spender: Address,
        amount: Amount,
    ) -> Result<(), LocalError> {
        let value = U256::from(amount.get());
        let data: Bytes = IToken::approveCall { spender, value }.abi_encode().into();
        self.ask::<_, Value>("anvil_impersonateAccount", (owner,))
            .await?;
        self.act(owner, data).await?;
        self.ask::<_, Value>("anvil_stopImpersonatingAccount", (owner,))
            .await?;
        Ok(())
    }

    /// Calls the token.
    async fn act(&self, from: Address, data: Bytes) -> Result<(), LocalError> {
        let call = json!({ "from": from, "to": self.network.token, "data": data });
        let hash: B256 = self.ask("eth_sendTransaction", (call,)).await?;
        self.mined(hash).await
    }

    /// Anvil answers before it has mined.
    async fn mined(&self, hash: B256) -> Result<(), LocalError> {
        let end = Instant::now() + START_LIMIT;
        while Instant::now() < end {
            let receipt: Value = self.ask("eth_getTransactionReceipt", (hash,)).await?;
            if !receipt.is_null() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(LocalError::Rpc("a mint".into(), "it is not mined".into()))
    }

    /// Sets what an account holds for gas, in wei.
    ///
    /// # Errors
    /// [`LocalError::Rpc`].
    pub async fn fund(&self, account: Address, wei: u128) -> Result<(), LocalError> {
        let wei = U256::from(wei);
        self.ask::<_, Value>("anvil_setBalance", (account, wei))
            .await?;
        Ok(())
    }

    /// Mines so many blocks.
    ///
    /// # Errors
    /// [`LocalError::Rpc`].
    pub async fn mine(&self, blocks: u64) -> Result<(), LocalError> {
        self.ask::<_, Value>("anvil_mine", (U256::from(blocks),))
            .await?;
        Ok(())
    }

    /// Takes back the last `depth` blocks and mines as many empty ones: what was in them is gone,
    /// also from the pool.
    ///
    /// # Errors
    /// [`LocalError::Rpc`].
    pub async fn reorg(&self, depth: u64) -> Result<(), LocalError> {
        let nothing: [Value; 0] = [];
        self.ask::<_, Value>("anvil_reorg", (depth, nothing))
            .await?;
        Ok(())
    }

    /// Waits until the newest block has a transaction; false when none had within this time.
    ///
    /// # Errors
    /// [`LocalError::Rpc`].
    pub async fn busy(&self, patience: Duration) -> Result<bool, LocalError> {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            let count = "eth_getBlockTransactionCountByNumber";
            let count: U256 = self.ask(count, ("latest",)).await?;
            if !count.is_zero() {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(false)
    }

    /// Holds transactions back until [`LocalChain::mine`], or mines them at once again.
    ///
    /// # Errors
    /// [`LocalError::Rpc`].
    pub async fn set_held(&self, held: bool) -> Result<(), LocalError> {
        self.ask::<_, Value>("evm_setAutomine", (!held,)).await?;
        Ok(())
    }

    /// Makes the next block ask so much per gas, in wei.
    ///
    /// # Errors
    /// [`LocalError::Rpc`].
    pub async fn set_base_fee(&self, wei: u128) -> Result<(), LocalError> {
        let method = "anvil_setNextBlockBaseFeePerGas";
        self.ask::<_, Value>(method, (U256::from(wei),)).await?;
        Ok(())
    }

    /// Forgets a transaction that waits, as nodes do under pressure.
    ///
    /// # Errors
    /// [`LocalError::Rpc`].
    pub async fn forget(&self, transaction: B256) -> Result<(), LocalError> {
        self.ask::<_, Value>("anvil_dropTransaction", (transaction,))
            .await?;
        Ok(())
    }

    /// Moves the chain's time forward, with a block. Deposits signed by the wall clock may
    /// then count as too late.
    ///
    /// # Errors
    /// [`LocalError::Rpc`].
    pub async fn advance(&self, by: Duration) -> Result<(), LocalError> {
        self.ask::<_, Value>("evm_increaseTime", (by.as_secs(),))
            .await?;
        self.mine(1).await
    }

    async fn ask<P, R>(&self, method: &'static str, parameters: P) -> Result<R, LocalError>
    where
        P: Serialize + Clone + std::fmt::Debug + Send + Sync + Unpin + 'static,
        R: DeserializeOwned + std::fmt::Debug + Send + Sync + Unpin + 'static,
    {
        self.node
            .raw_request(method.into(), parameters)
            .await
            .map_err(|e| LocalError::Rpc(method.to_owned(), e.to_string()))
    }
}

/// Reads anvil's output until it says where it listens, and throws the rest away.
async fn listening(child: &mut Child) -> Option<String> {
    let mut lines = BufReader::new(child.stdout.take()?).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some((_, address)) = line.split_once("Listening on ") {
            let url = format!("http://{}", address.trim());
            // A pipe that nobody reads fills up and stops anvil. Ends with the process.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Some(url);
        }
    }
    None
}

fn initcode(path: &Path) -> Result<Vec<u8>, LocalError> {
    let bad = |why: String| LocalError::Artifact(path.to_owned(), why);
    let text = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let artifact: Value = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    let code = artifact
        .get("bytecode")
        .and_then(|code| code.as_str().or_else(|| code.get("object")?.as_str()))
        .ok_or_else(|| bad("no bytecode".into()))?;
    alloy::hex::decode(code).map_err(|e| bad(e.to_string()))
}
