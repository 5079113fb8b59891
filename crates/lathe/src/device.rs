//! `--device`: where a verb computes, and what cannot be there.

use anyhow::{Context, Result, ensure};
use clap::Args;
use model::WeightFormats;
use ops::{Device, DeviceName};

use crate::output;

/// Where a verb computes.
#[derive(Debug, Args)]
pub(crate) struct DeviceOption {
    /// Compute on cpu, on gpu or gpu:N (Vulkan, Metal, DirectX 12; a build with the feature gpu),
    /// or on cuda or cuda:N (a build with the feature cuda)
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub(crate) device: DeviceName,
}

impl DeviceOption {
    /// Opens the device and says which one it is.
    pub(crate) fn open(&self) -> Result<Device> {
        let device = Device::open(self.device).context("--device")?;
        if let Some(model) = device.model() {
            output::note(format!("computing on {}: {}", self.device, output::harmless(&model)));
        }
        Ok(device)
    }
}

/// Refuses weights in fewer bits on a device, of a checkpoint or by `--weights`.
pub(crate) fn takes(device: Device, weights: &[Option<&WeightFormats>]) -> Result<()> {
    for formats in weights.iter().flatten() {
        ensure!(
            device == Device::CPU || **formats == WeightFormats::default(),
            "--device {}: expected weights in f32, found {formats}: rounded weights are for cpu \
             alone; leave --device out, or take the f32 checkpoint without --weights",
            device.name()
        );
    }
    Ok(())
}
