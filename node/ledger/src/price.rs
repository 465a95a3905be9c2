//! What storage costs: from a price per GiB and day to the fixed price of one epoch.

use alloy_primitives::U256;

use crate::btt::{Btt, to_btt};

/// Bytes in the GiB that prices are named for.
pub const GIB: u64 = 1 << 30;

/// Seconds in the day that prices are named for.
pub const DAY: u64 = 86_400;

/// The price of keeping `size` bytes for one epoch of `epoch_length` seconds at `price` per GiB and day:
/// `ceil(size * price * epoch_length / (2^30 * 86400))`, the product in 256 bits. `None` if it does not fit.
pub fn epoch_price(size: u64, price: Btt, epoch_length: u32) -> Option<Btt> {
    // 64 + 128 + 32 bits: the product always fits in 256.
    let product = U256::from(size) * U256::from(price.units()) * U256::from(epoch_length);
    to_btt(product.div_ceil(U256::from(GIB) * U256::from(DAY)))
}

/// What an agreement can cost at most: the setup price and every epoch from the first of its id to `end_epoch`.
/// `None` if it does not fit, which no agreement may reach.
pub fn total_price(setup_price: Btt, epoch_price: Btt, end_epoch: u32) -> Option<Btt> {
    epoch_price.checked_mul(u64::from(end_epoch))?.checked_add(setup_price)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// BTT in existence, in whole BTT.
    const SUPPLY: u128 = 990_000_000_000_000;
    const EIB: u64 = 1 << 60;
    const TEN_YEARS: u32 = 3650 * 86_400;

    #[test]
    fn a_gib_day_costs_its_price() {
        let price = Btt::from_units(7);
        assert_eq!(epoch_price(GIB, price, DAY as u32), Some(price));
        assert_eq!(epoch_price(GIB, price, 3600), Some(Btt::from_units(1)), "7/24 rounds up");
        assert_eq!(epoch_price(0, price, 3600), Some(Btt::ZERO));
        assert_eq!(epoch_price(1, Btt::from_units(1), 1), Some(Btt::from_units(1)), "never free by rounding");
    }

    #[test]
    fn the_largest_terms_are_exact_or_refused() {
        let supply = Btt::from_units(SUPPLY * 10u128.pow(18));
        let days = u64::from(TEN_YEARS) / DAY;
        let exact = U256::from(supply.units()) * U256::from(EIB / GIB) * U256::from(days);
        assert!(exact > U256::from(u128::MAX));
        assert_eq!(epoch_price(EIB, supply, TEN_YEARS), None);
        let per_gib = Btt::from_units(supply.units() / u128::from(EIB / GIB));
        let day = epoch_price(EIB, per_gib, DAY as u32).unwrap();
        assert_eq!(day.units(), per_gib.units() * u128::from(EIB / GIB));
        assert_eq!(epoch_price(EIB, per_gib, TEN_YEARS), day.checked_mul(days));
        assert_eq!(total_price(Btt::ONE, day, 3650), day.checked_mul(3650).unwrap().checked_add(Btt::ONE));
        assert_eq!(total_price(Btt::ZERO, Btt::MAX, 2), None);
        assert_eq!(epoch_price(u64::MAX, Btt::MAX, u32::MAX), None);
    }

    proptest! {
        #[test]
        fn a_year_in_days_is_at_least_a_year_at_once(size in 1..EIB, price in 0..SUPPLY * 1_000_000) {
            let price = Btt::from_units(price);
            let by_day = epoch_price(size, price, DAY as u32).unwrap().checked_mul(365).unwrap();
            let at_once = epoch_price(size, price, 365 * DAY as u32).unwrap();
            prop_assert!(by_day >= at_once && by_day.units() - at_once.units() < 365);
        }
    }
}
