//! Offers, agreements, audits, repair and host choice.
