//! A variant that is added to the wire and to no vector is found here: the decoder itself says
//! how many it knows.

use std::any::type_name;
use std::collections::HashSet;

use farthing_protocol::codec::{self, Error};
use farthing_protocol::frame::{Answer, Call, Part, ToBuyer, ToSeller};
use farthing_protocol::purchase::{Endpoint, Mode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frames::{self, FrameVector};
use super::receipts::ENDINGS;
use super::samples;

/// A number no variant has.
const UNKNOWN: u8 = 250;

pub fn check() {
    complete::<ToSeller>(frames::to_seller().into_iter().map(FrameVector::into_value));
    complete::<ToBuyer>(frames::to_buyer().into_iter().map(FrameVector::into_value));
    complete::<Call>(frames::call().into_iter().map(FrameVector::into_value));
    complete::<Answer>(frames::answer().into_iter().map(FrameVector::into_value));
    complete(frames::refusals());
    complete(frames::voucher_faults());
    complete(frames::call_refusals());
    complete(samples::root_words().map(|(_, word)| word));
    complete(ENDINGS);
    complete(Endpoint::ALL);
    complete([Mode::Plain, Mode::Stream]);
    complete([Part::More, Part::Last]);
}

/// The samples show as many variants as the decoder knows.
fn complete<T: Serialize + DeserializeOwned>(samples: impl IntoIterator<Item = T>) {
    let tag = |value: T| codec::encode(&value).expect("a sample can be encoded")[1];
    let shown: HashSet<u8> = samples.into_iter().map(tag).collect();
    assert_eq!(shown.len(), known::<T>(), "{}", type_name::<T>());
}
/// How many variants the decoder knows, from what it says about one it does not.
fn known<T: DeserializeOwned>() -> usize {
    let refused = codec::decode::<T>(&[codec::VERSION, UNKNOWN], 16);
    let Err(Error::Malformed(text)) = refused.map(drop) else {
        panic!("variant {UNKNOWN} is known");
    };
    let (_, count) = text
        .split_once("0 <= i < ")
        .expect("the decoder names the range");
    let digits: String = count.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}
