//! Trust bundles: what one device is to believe.

use super::trust::{Trust, TrustError, lines};
use crate::db::Tx;
use daypass_protocol::bundle::{MAX_REVOKED, TrustBundle};
use daypass_protocol::ids::DeviceId;
use daypass_protocol::signed::{Purpose, SignedText};
use daypass_protocol::time::Timestamp;
use sha2::{Digest, Sha256};
use sqlx::Row as _;

#[derive(Debug, thiserror::Error)]
pub enum BundleMakeError {
    #[error("device {0} is not in the inventory")]
    UnknownDevice(DeviceId),
    #[error("device {device} holds trust bundle {held}, and no higher version can be made")]
    VersionsExhausted { device: DeviceId, held: u64 },
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// The bundle in force for a device.
#[derive(Clone, Debug)]
pub struct MadeBundle {
    pub version: u64,
    pub signed: SignedText,
}

/// The bundle in force for `device`, which says it holds version `held` (0 for none).
///
/// A bundle that says the same as the one before keeps its version; anything else gets a higher one, in
/// `tx`. A device that holds a higher version than this database knows (it was restored from a backup)
/// gets one above its own, or it would never believe this broker again.
pub(crate) async fn current(
    tx: &mut Tx,
    trust: &Trust,
    device: &DeviceId,
    held: u64,
    now: Timestamp,
) -> Result<MadeBundle, BundleMakeError> {
    let mut bundle = TrustBundle {
        version: 0,
        device: device.clone(),
        issued_at: Timestamp(0),
        user_cas: lines(trust.cas.user_cas())?,
        broker_keys: lines(trust.evidence.public_keys())?,
        revoked_serials: revoked(tx, device, now).await?,
    };
    let digest = serde_json::to_vec(&bundle).map_err(|error| TrustError::Body("a trust bundle", error))?;
    let digest = hex::encode(Sha256::digest(&digest));
    let known = sqlx::query("SELECT bundle_version, bundle_digest FROM device WHERE id = $1")
        .bind(device.as_str())
        .fetch_optional(tx.conn())
        .await?
        .ok_or_else(|| BundleMakeError::UnknownDevice(device.clone()))?;
    let version = u64::try_from(known.try_get::<i64, _>(0)?).unwrap_or(0);
    bundle.version = if known.try_get::<String, _>(1)? == digest && version >= held {
        version
    } else {
        let next = version.max(held).checked_add(1).filter(|next| i64::try_from(*next).is_ok());
        let next = next.ok_or_else(|| BundleMakeError::VersionsExhausted { device: device.clone(), held })?;
        sqlx::query("UPDATE device SET bundle_version = $2, bundle_digest = $3 WHERE id = $1")
            .bind(device.as_str())
            .bind(i64::try_from(next).unwrap_or(i64::MAX))
            .bind(digest)
            .execute(tx.conn())
            .await?;
        next
    };
    bundle.issued_at = now;
    let signed = trust.seal(Purpose::Bundle, "a trust bundle", &bundle)?;
    Ok(MadeBundle { version: bundle.version, signed })
}

/// Serials of this device's session certificates that were revoked and have not yet ended by themselves;
/// the latest to end first, if there are more than a device will hold.
async fn revoked(tx: &mut Tx, device: &DeviceId, now: Timestamp) -> Result<Vec<u64>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT certificate.serial FROM certificate JOIN session ON session.id = certificate.session
         WHERE session.device = $1 AND certificate.revoked_at IS NOT NULL AND certificate.valid_before > $2
         ORDER BY certificate.valid_before DESC, certificate.serial LIMIT $3",
    )
    .bind(device.as_str())
    .bind(now.as_millis())
    .bind(i64::try_from(MAX_REVOKED).unwrap_or(i64::MAX))
    .fetch_all(tx.conn())
    .await?;
    let mut serials = rows.iter().map(|row| row.try_get::<i64, _>(0)).collect::<Result<Vec<_>, _>>()?;
    serials.sort_unstable();
    Ok(serials.into_iter().filter_map(|serial| u64::try_from(serial).ok()).collect())
}
