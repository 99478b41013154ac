//! The protocol's frozen examples: what `protocol/vectors` says, the code does, and the page
//! `docs/protocol.md` names.
//!
//! Every file is read, every entry is checked on its own, and together they must be exactly what
//! the code makes of the fixed samples. `FARTHING_BLESS=1 cargo test -p farthing-tests --test
//! vectors` writes them anew; a difference there is a new version of the protocol.

#![allow(
    clippy::panic,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a failed check says where and why; the environment says whether to bless"
)]

mod vectors {
    pub mod attestations;
    pub mod frames;
    pub mod ink;
    pub mod money;
    pub mod offers;
    pub mod page;
    pub mod payments;
    pub mod prices;
    pub mod receipts;
    pub mod roots;
    pub mod samples;
    pub mod sheet;
    pub mod stream;
    pub mod testimonies;
    pub mod variants;
}

use farthing_protocol::{frame, offer, pricing};
use vectors::sheet::{Sheet, folder};
use vectors::{
    attestations, frames, ink, money, offers, page, payments, prices, receipts, roots, stream,
    testimonies, variants,
};

/// Every sheet there is.
fn sheets() -> Vec<Sheet> {
    vec![
        Sheet::of("codec.json", ink::CODEC, ink::codec()),
        Sheet::of("refused.json", ink::REFUSED, ink::refused()),
        Sheet::of("identity.json", ink::IDENTITY, ink::identity()),
        Sheet::of("stream.json", stream::ABOUT, stream::streams()),
        Sheet::of("topic.json", offers::TOPIC, offers::topics()),
        Sheet::of("offer.json", offers::OFFER, offers::offers()),
        Sheet::of("to_seller.json", frames::TO_SELLER, frames::to_seller()),
        Sheet::of("to_buyer.json", frames::TO_BUYER, frames::to_buyer()),
        Sheet::of("call.json", frames::CALL, frames::call()),
        Sheet::of("answer.json", frames::ANSWER, frames::answer()),
        Sheet::of("receipt.json", receipts::ABOUT, receipts::receipts()),
        Sheet::of(
            "testimony.json",
            testimonies::ABOUT,
            testimonies::testimonies(),
        ),
        Sheet::of("tree.json", roots::TREE, roots::trees()),
        Sheet::of("proof.json", roots::PROOF, roots::proofs()),
        Sheet::of("root.json", roots::ROOT, roots::roots()),
        Sheet::of("channel.json", money::CHANNEL, money::channels()),
        Sheet::of("voucher.json", money::VOUCHER, money::vouchers()),
        Sheet::of("deposit.json", money::DEPOSIT, money::deposits()),
        Sheet::of("payment.json", payments::HEADERS, payments::headers()),
        Sheet::of("payment_name.json", payments::NAMES, payments::names()),
        Sheet::of(
            "attestation.json",
            attestations::ABOUT,
            attestations::attestations(),
        ),
        Sheet::of("pricing.json", prices::ABOUT, prices::examples()),
    ]
}

#[test]
fn every_vector_is_what_the_code_says_and_does() {
    for sheet in sheets() {
        sheet.hold();
    }
}

#[test]
fn no_file_of_vectors_is_unread() {
    let mut read: Vec<String> = sheets().iter().map(|sheet| sheet.file.to_owned()).collect();
    read.sort();
    let mut there: Vec<String> = std::fs::read_dir(folder())
        .expect("the folder of vectors")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("a name")
        })
        .collect();
    there.sort();
    assert_eq!(there, read);
}

#[test]
fn names_are_unique_within_a_file() {
    for sheet in sheets() {
        let mut names = sheet.names();
        names.sort();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "{}", sheet.file);
    }
}

#[test]
fn every_variant_on_the_wire_has_a_vector() {
    variants::check();
}

#[test]
fn the_protocol_page_names_every_vector_and_no_other() {
    let mut there = Vec::new();
    for sheet in sheets() {
        let file = sheet.file.trim_end_matches(".json");
        there.extend(sheet.names().iter().map(|name| format!("{file}/{name}")));
    }
    there.sort();
    assert_eq!(page::named(), there);
}

#[test]
fn every_section_of_the_protocol_page_ends_with_its_vectors() {
    for section in page::sections() {
        let last = section
            .paragraphs
            .last()
            .map(String::as_str)
            .unwrap_or_default();
        assert!(last.starts_with("Vectors: "), "{}", section.title);
    }
}

#[test]
fn the_protocol_page_spells_every_type_that_is_hashed() {
    let page = page::text();
    for sheet in sheets() {
        for spelled in sheet.types() {
            assert!(page.contains(&spelled), "{spelled}");
        }
    }
}

#[test]
fn the_limits_on_the_protocol_page_are_those_of_the_code() {
    let limits = [
        ("ASK_LIMIT", frame::ASK_LIMIT as u64),
        ("PAY_LIMIT", frame::PAY_LIMIT as u64),
        ("CHUNK_LIMIT", frame::CHUNK_LIMIT as u64),
        ("CHUNK_PAYLOAD", frame::CHUNK_PAYLOAD as u64),
        ("REFUSAL_BODY_LIMIT", frame::REFUSAL_BODY_LIMIT as u64),
        ("CALL_LIMIT", frame::CALL_LIMIT as u64),
        ("ANSWER_LIMIT", frame::ANSWER_LIMIT as u64),
        ("BOOK_PAGE", frame::BOOK_PAGE as u64),
        ("RECEIPT_PAGE", frame::RECEIPT_PAGE as u64),
        ("KEPT_OPEN", frame::KEPT_OPEN.as_secs()),
        ("MAX_BYTES", offer::MAX_BYTES as u64),
        ("MAX_LIFETIME", offer::MAX_LIFETIME.as_secs()),
        ("MAX_SKEW", offer::MAX_SKEW.as_secs()),
        ("MAX_MODELS", offer::MAX_MODELS as u64),
        ("MAX_ADDRESSES", offer::MAX_ADDRESSES as u64),
        ("MAX_TEXT", offer::MAX_TEXT as u64),
        ("FIRST_WINDOW", pricing::FIRST_WINDOW),
        ("MAX_WINDOW", pricing::MAX_WINDOW),
    ];
    for (name, value) in limits {
        assert_eq!(page::limit(name), Some(value), "{name}");
    }
}
