//! What a request wants of its seller: OpenRouter's `provider` object, and the same by
//! configuration. A request can only tighten what the configuration says. Pure.

use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::body::{Body, BodyError};
use serde::{Deserialize, Serialize};

use crate::config::Router;

/// The most names in one list, and the longest name.
const NAMES: usize = 64;
const NAME: usize = 256;
/// Digits between an atom and a micro-atom.
const MICRO_DIGITS: u32 = 6;

/// By what sellers are ordered, and by nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// The expected price (`price`, `:floor`).
    Price,
    /// Tokens per second (`throughput`, `:nitro`).
    Throughput,
    /// Time to the first token (`latency`).
    Latency,
    /// The chance that it works (`exacto`, `:exacto`).
    Quality,
}

/// A measure of which at least so many requests in a hundred must be good, in thousandths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half of them.
    pub p50: Option<u64>,
    /// 75 (and of 90) in a hundred: taken for 95, which is what is measured.
    pub p95: Option<u64>,
    /// 99 in a hundred.
    pub p99: Option<u64>,
}

/// What is wanted of a seller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is one word of the request"
)]
pub struct Preferences {
    /// Sellers to try first, in this order.
    pub order: Vec<String>,
    /// Only sellers that every one of these lists names.
    pub only: Vec<Vec<String>>,
    /// Sellers never asked.
    pub ignore: Vec<String>,
    /// Nobody is tried but those of `order`, or the best.
    pub no_fallbacks: bool,
    /// All that the request asks for must be stated by the offer.
    pub require_parameters: bool,
    /// Prompts must be kept by nobody: only sellers that say so.
    pub private: bool,
    /// Only these, by every one of these lists.
    pub quantizations: Vec<Vec<String>>,
    /// Only sellers in regions that begin so.
    pub regions: Vec<String>,
    /// By what to order.
    pub sort: Option<Sort>,
    /// Whether the models of a request are ordered together instead of one after the other.
    pub across: bool,
    /// The dearest request by itself.
    pub max_price_request: Option<Price>,
    /// Tokens per second, in thousandths: slower sellers come later.
    pub min_throughput: Percentiles,
    /// Seconds to the first token, in thousandths: slower sellers come later.
    pub max_latency: Percentiles,
}

/// The dearest tokens that a request allows, and the most it may cost as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MaxPrice {
    pub(super) input: Option<Price>,
    pub(super) output: Option<Price>,
    pub(super) cost: Option<Amount>,
}

impl Preferences {
    /// What the configuration wants, and what this request's `provider` adds to it.
    pub(super) fn of(
        body: &Body<'_>,
        router: &Router,
        decimals: u8,
    ) -> Result<(Self, MaxPrice), BodyError> {
        let mut wanted = Self::by_config(router);
        let Some(text) = body.raw("provider") else {
            return Ok((wanted, MaxPrice::default()));
        };
        let provider =
            Body::parse(text.as_bytes()).map_err(|_| wrong("provider", "expected an object"))?;
        wanted.add_lists(&provider)?;
        let flag = |field| read(&provider, field).map(Option::unwrap_or_default);
        wanted.no_fallbacks = read(&provider, "provider.allow_fallbacks")? == Some(false);
        wanted.require_parameters = flag("provider.require_parameters")?;
        wanted.private |= flag("provider.zdr")?;
        match read::<String>(&provider, "provider.data_collection")?.as_deref() {
            None | Some("allow") => {}
            Some("deny") => wanted.private = true,
            Some(_) => {
                return Err(wrong(
                    "provider.data_collection",
                    "expected `allow` or `deny`",
                ));
            }
        }
        (wanted.sort, wanted.across) = sort(&provider)?;
        wanted.min_throughput = percentiles(&provider, "provider.preferred_min_throughput")?;
        wanted.max_latency = percentiles(&provider, "provider.preferred_max_latency")?;
        let max = MaxPrice {
            cost: read(&provider, "provider.max_cost")?,
            ..wanted.max_price(&provider, decimals)?
        };
        Ok((wanted, max))
    }

    fn by_config(router: &Router) -> Self {
        let some = |list: &Vec<String>| match list.is_empty() {
            true => Vec::new(),
            false => vec![list.clone()],
        };
        Self {
            only: some(&router.only),
            ignore: router.ignore.clone(),
            private: router.private,
            quantizations: some(&router.quantizations),
            regions: router.regions.clone(),
            ..Self::default()
        }
    }

    fn add_lists(&mut self, provider: &Body<'_>) -> Result<(), BodyError> {
        self.order = names(provider, "provider.order")?;
        let only = names(provider, "provider.only")?;
        if !only.is_empty() {
            self.only.push(only);
        }
        self.ignore.extend(names(provider, "provider.ignore")?);
        let quantizations = names(provider, "provider.quantizations")?;
        if !quantizations.is_empty() {
            self.quantizations.push(quantizations);
        }
        Ok(())
    }

    /// The dearest prices. Images and sound have none here: their limits hold by themselves.
    fn max_price(&mut self, provider: &Body<'_>, decimals: u8) -> Result<MaxPrice, BodyError> {
        const FIELD: &str = "provider.max_price";
        let Some(text) = provider.raw("max_price") else {
            return Ok(MaxPrice::default());
        };
        let prices =
            Body::parse(text.as_bytes()).map_err(|_| wrong(FIELD, "expected an object"))?;
        let price = |field: &str, digits: u32| {
            let text = prices.raw(field).map(|text| text.trim_matches('"'));
            let parsed = text.map(|text| scaled(text, digits).map(Price));
            let reason = "expected amounts of the token per million tokens, such as 0.5";
            parsed
                .map(|price| price.ok_or_else(|| wrong(FIELD, reason)))
                .transpose()
        };
        // A million tokens at so many micro-atoms are so many atoms.
        let decimals = u32::from(decimals);
        self.max_price_request = price("request", decimals + MICRO_DIGITS)?;
        Ok(MaxPrice {
            input: price("prompt", decimals)?,
            output: price("completion", decimals)?,
            cost: None,
        })
    }

    /// Whether the request or the configuration names sellers that must be found.
    #[must_use]
    pub fn names_sellers(&self) -> bool {
        !self.order.is_empty() || !self.only.is_empty()
    }
}

fn wrong(field: &'static str, reason: &str) -> BodyError {
    BodyError::Field {
        field,
        reason: reason.to_owned(),
    }
}

/// A field of the object, by its full name.
fn read<T: serde::de::DeserializeOwned>(
    provider: &Body<'_>,
    field: &'static str,
) -> Result<Option<T>, BodyError> {
    let name = field.strip_prefix("provider.").unwrap_or(field);
    let parse = |text| serde_json::from_str(text).map_err(|e| wrong(field, &e.to_string()));
    provider.raw(name).map(parse).transpose()
}

fn names(provider: &Body<'_>, field: &'static str) -> Result<Vec<String>, BodyError> {
    let list: Vec<String> = read(provider, field)?.unwrap_or_default();
    if list.len() > NAMES || list.iter().any(|name| name.len() > NAME) {
        return Err(wrong(field, "at most 64 names of at most 256 bytes"));
    }
    Ok(list)
}

fn sort(provider: &Body<'_>) -> Result<(Option<Sort>, bool), BodyError> {
    const FIELD: &str = "provider.sort";
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        By(String),
        With {
            by: String,
            partition: Option<String>,
        },
    }
    let by = |word: &str| match word {
        "price" => Ok(Sort::Price),
        "throughput" => Ok(Sort::Throughput),
        "latency" => Ok(Sort::Latency),
        "exacto" => Ok(Sort::Quality),
        _ => Err(wrong(
            FIELD,
            "expected `price`, `throughput`, `latency` or `exacto`",
        )),
    };
    let given = provider.raw("sort").map(serde_json::from_str::<Given>);
    let given = given.transpose().map_err(|_| {
        wrong(
            FIELD,
            "expected a word or an object with `by` and `partition`",
        )
    })?;
    match given {
        None => Ok((None, false)),
        Some(Given::By(word)) => Ok((Some(by(&word)?), false)),
        Some(Given::With {
            by: word,
            partition,
        }) => match partition.as_deref() {
            None | Some("model") => Ok((Some(by(&word)?), false)),
            Some("none") => Ok((Some(by(&word)?), true)),
            Some(_) => Err(wrong(FIELD, "`partition` is `model` or `none`")),
        },
    }
}

fn percentiles(provider: &Body<'_>, field: &'static str) -> Result<Percentiles, BodyError> {
    let name = field.strip_prefix("provider.").unwrap_or(field);
    let Some(text) = provider.raw(name) else {
        return Ok(Percentiles::default());
    };
    let bad = || {
        wrong(
            field,
            "expected a number, or an object of p50, p75, p90, p99",
        )
    };
    if let Some(number) = scaled(text, 3) {
        return Ok(Percentiles {
            p50: Some(number),
            ..Percentiles::default()
        });
    }
    let object = Body::parse(text.as_bytes()).map_err(|_| bad())?;
    let one = |name: &str| {
        let parsed = object.raw(name).map(|text| scaled(text, 3).ok_or_else(bad));
        parsed.transpose()
    };
    let (p75, p90) = (one("p75")?, one("p90")?);
    Ok(Percentiles {
        p50: one("p50")?,
        p95: p90.or(p75),
        p99: one("p99")?,
    })
}

/// A decimal number of JSON times ten to the power of `digits`, rounded down; none when it is not
/// one, is negative, or is too large.
fn scaled(text: &str, digits: u32) -> Option<u64> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{part}");
    if whole.is_empty() || all.len() > 30 || !all.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u128 = all.parse().ok()?;
    let places = i32::try_from(part.len()).ok()?;
    let shift = i32::try_from(digits)
        .ok()?
        .checked_add(exponent)?
        .checked_sub(places)?;
    let power = |n: i32| 10_u128.checked_pow(n.unsigned_abs());
    let result = match shift {
        0.. => number.checked_mul(power(shift)?)?,
        _ => power(shift).map_or(0, |power| number / power),
    };
    u64::try_from(result).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    fn of(provider: &str) -> Result<(Preferences, MaxPrice), String> {
        let text = format!(r#"{{"model":"m","provider":{provider}}}"#);
        let body = Body::parse(text.as_bytes()).expect("parses");
        Preferences::of(&body, &Config::default().router, 6).map_err(|e| e.to_string())
    }

    #[test]
    fn every_word_of_the_provider_object_is_read() {
        let (wanted, max) = of(
            r#"{"order":["a","b"],"only":["c"],"ignore":["d"],"allow_fallbacks":false,
            "require_parameters":true,"data_collection":"deny","zdr":false,
            "quantizations":["bf16"],"sort":{"by":"latency","partition":"none"},
            "max_price":{"prompt":"0.5","completion":2,"request":1e-3,"image":9},
            "max_cost":"2500","preferred_min_throughput":50,"preferred_max_latency":{"p50":1.5,"p90":3,"p99":5},
            "options":{"x":1}}"#,
        )
        .expect("is read");
        assert_eq!(wanted.order, ["a", "b"]);
        assert_eq!(wanted.only, [["c"]]);
        assert_eq!(wanted.ignore, ["d"]);
        assert!(wanted.no_fallbacks && wanted.require_parameters && wanted.private);
        assert_eq!(wanted.quantizations, [["bf16"]]);
        assert_eq!((wanted.sort, wanted.across), (Some(Sort::Latency), true));
        assert_eq!(max.input, Some(Price(500_000)));
        assert_eq!(max.output, Some(Price(2_000_000)));
        assert_eq!(max.cost, Some(Amount::atoms(2_500)));
        assert_eq!(wanted.max_price_request, Some(Price(1_000_000_000)));
        assert_eq!(wanted.min_throughput.p50, Some(50_000));
        let latency = wanted.max_latency;
        assert_eq!(
            (latency.p50, latency.p95, latency.p99),
            (Some(1500), Some(3000), Some(5000))
        );
    }

    #[test]
    fn what_is_of_the_wrong_kind_is_refused_by_its_name() {
        for (provider, name) in [
            ("7", "provider"),
            (r#"{"order":"a"}"#, "provider.order"),
            (r#"{"only":[1]}"#, "provider.only"),
            (r#"{"ignore":{}}"#, "provider.ignore"),
            (r#"{"allow_fallbacks":"no"}"#, "provider.allow_fallbacks"),
            (r#"{"require_parameters":1}"#, "provider.require_parameters"),
            (r#"{"data_collection":"maybe"}"#, "provider.data_collection"),
            (r#"{"zdr":"yes"}"#, "provider.zdr"),
            (r#"{"quantizations":"bf16"}"#, "provider.quantizations"),
            (r#"{"sort":"beauty"}"#, "provider.sort"),
            (
                r#"{"sort":{"by":"price","partition":"all"}}"#,
                "provider.sort",
            ),
            (r#"{"max_price":1}"#, "provider.max_price"),
            (r#"{"max_cost":1}"#, "provider.max_cost"),
            (r#"{"max_cost":"0.5"}"#, "provider.max_cost"),
            (r#"{"max_price":{"prompt":-1}}"#, "provider.max_price"),
            (r#"{"max_price":{"prompt":"cheap"}}"#, "provider.max_price"),
            (
                r#"{"preferred_min_throughput":"fast"}"#,
                "provider.preferred_min_throughput",
            ),
            (
                r#"{"preferred_max_latency":{"p50":"x"}}"#,
                "provider.preferred_max_latency",
            ),
        ] {
            let error = of(provider).expect_err(provider);
            assert!(error.contains(&format!("`{name}`")), "{provider}: {error}");
        }
    }

    #[test]
    fn a_request_can_only_tighten_the_configuration() {
        let mut config = Config::default();
        config.router.only = vec!["a".into(), "b".into()];
        config.router.ignore = vec!["x".into()];
        config.router.private = true;
        config.router.quantizations = vec!["bf16".into()];
        let text = r#"{"provider":{"only":["b","c"],"ignore":["y"],"zdr":false,"data_collection":"allow","quantizations":["fp8"]}}"#;
        let body = Body::parse(text.as_bytes()).expect("parses");
        let (wanted, _) = Preferences::of(&body, &config.router, 6).expect("is read");
        assert_eq!(wanted.only, [["a", "b"], ["b", "c"]]);
        assert_eq!(wanted.ignore, ["x", "y"]);
        assert!(wanted.private);
        assert_eq!(wanted.quantizations, [["bf16"], ["fp8"]]);
    }

    #[test]
    fn a_price_is_read_to_the_digit() {
        for (text, digits, number) in [
            ("0.5", 6, Some(500_000)),
            ("1e-7", 6, Some(0)),
            ("2.5E2", 0, Some(250)),
            ("3", 18, Some(3_000_000_000_000_000_000)),
            ("99999999999999999999", 0, None),
            ("1e99", 0, None),
            ("1e-99", 0, Some(0)),
            ("-1", 0, None),
            (".5", 1, None),
            ("", 0, None),
        ] {
            assert_eq!(scaled(text, digits), number, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_provider_object_makes_the_reader_panic(text in "[\\[\\]{}\":,a-z0-9.eE-]{0,80}") {
            // Whatever it says: it is read or refused.
            prop_assert!(scaled(&text, 6).is_none_or(|n| n < u64::MAX));
            let body = format!(r#"{{"provider":{text}}}"#);
            if let Ok(body) = Body::parse(body.as_bytes()) {
                drop(Preferences::of(&body, &Config::default().router, 6));
            }
        }
    }
}
