//! Where plain operations compute: the processors, or a GPU that Burn reaches through CubeCL.

use std::fmt;
use std::str::FromStr;

use burn_tensor::Device as BurnDevice;
use thiserror::Error;

/// The name of a device: `cpu`, `gpu`, `gpu:N`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The processors of this machine.
    #[default]
    Cpu,
    /// A GPU by Vulkan, Metal or DirectX 12: the one with this number among all that the drivers
    /// list, from 0, or the one that they call the fastest.
    Gpu(Option<u16>),
    /// An NVIDIA GPU by CUDA: the one with this number, or number 0.
    Cuda(Option<u16>),
}

/// Why there is no such device, or what it did.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// Not the name of a device.
    #[error("expected cpu, gpu, gpu:N, cuda or cuda:N with a number N below 65536, found {found}")]
    Name {
        /// What was given in its place.
        found: String,
    },
    /// The program was built without what reaches the device.
    #[error(
        "device {name}: expected a build with it, found one without: \
         build by `cargo build --release -p lathe --features {feature}`, or use cpu"
    )]
    NotBuilt {
        /// Its name on the command line.
        name: DeviceName,
        /// The feature that brings it.
        feature: &'static str,
    },
    /// No driver has it, or the driver refused it.
    #[error("device {name}: expected one that computes, found none: {found}; use another, or cpu")]
    Missing {
        /// Its name on the command line.
        name: DeviceName,
        /// What the driver says.
        found: String,
    },
    /// It stopped while it computed.
    #[error("device {name} stopped: {found}; files on the disk are whole: start again, or use cpu")]
    Stopped {
        /// Its name on the command line.
        name: DeviceName,
        /// What its driver says.
        found: String,
    },
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(None) => f.write_str("gpu"),
            Self::Gpu(Some(number)) => write!(f, "gpu:{number}"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(number)) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let (kind, number) = match text.split_once(':') {
            Some((kind, digits)) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                (kind, digits.parse().ok())
            }
            Some(_) => ("", None),
            None => (text, None),
        };
        match (kind, number, text.contains(':')) {
            ("cpu", None, false) => Ok(Self::Cpu),
            ("gpu", number, wanted) if number.is_some() == wanted => Ok(Self::Gpu(number)),
            ("cuda", number, wanted) if number.is_some() == wanted => Ok(Self::Cuda(number)),
            _ => Err(DeviceError::Name { found: format!("{text:?}") }),
        }
    }
}

/// A device that was opened. All of them hold weights and results of their own; what goes from one
/// to another goes through the memory of the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(Opened);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opened {
    Cpu,
    #[cfg(any(feature = "gpu", feature = "cuda"))]
    Other(other::Number),
}

impl Device {
    /// The processors, which are always there.
    pub const CPU: Self = Self(Opened::Cpu);

    /// Opens the device of this name and has it compute something. Opening it again gives the same.
    ///
    /// # Errors
    /// A device that this program was not built for, that is not there, or that does not compute.
    pub fn open(name: DeviceName) -> Result<Self, DeviceError> {
        match name {
            DeviceName::Cpu => Ok(Self::CPU),
            #[cfg(feature = "gpu")]
            DeviceName::Gpu(_) => other::open(name).map(|number| Self(Opened::Other(number))),
            #[cfg(feature = "cuda")]
            DeviceName::Cuda(_) => other::open(name).map(|number| Self(Opened::Other(number))),
            #[cfg(not(feature = "gpu"))]
            DeviceName::Gpu(_) => Err(DeviceError::NotBuilt { name, feature: "gpu" }),
            #[cfg(not(feature = "cuda"))]
            DeviceName::Cuda(_) => Err(DeviceError::NotBuilt { name, feature: "cuda" }),
        }
    }

    /// The name that it was opened by.
    pub fn name(self) -> DeviceName {
        match self.0 {
            Opened::Cpu => DeviceName::Cpu,
            #[cfg(any(feature = "gpu", feature = "cuda"))]
            Opened::Other(number) => other::name(number),
        }
    }

    /// What the driver calls it, where it has a driver.
    pub fn model(self) -> Option<String> {
        match self.0 {
            Opened::Cpu => None,
            #[cfg(any(feature = "gpu", feature = "cuda"))]
            Opened::Other(number) => other::device(number).identity().map(|found| found.name),
        }
    }

    /// Runs `work`, and what the device refuses meanwhile is an error: drivers tell it late, where
    /// a result is read. A panic on the processors stays one.
    ///
    /// # Errors
    /// What the device said.
    pub fn guard<T>(self, work: impl FnOnce() -> T) -> Result<T, DeviceError> {
        match self.0 {
            Opened::Cpu => Ok(work()),
            #[cfg(any(feature = "gpu", feature = "cuda"))]
            Opened::Other(number) => other::guard(number, work),
        }
    }

    pub(crate) fn burn(self) -> BurnDevice {
        match self.0 {
            Opened::Cpu => BurnDevice::flex(),
            #[cfg(any(feature = "gpu", feature = "cuda"))]
            Opened::Other(number) => other::device(number),
        }
    }
}

/// Devices beside the processors.
#[cfg(any(feature = "gpu", feature = "cuda"))]
mod other {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use burn_tensor::{Device as BurnDevice, Tensor, TensorData};

    use super::{DeviceError, DeviceName};

    /// The place of a device among those that were opened.
    pub(super) type Number = usize;

    static OPENED: Mutex<Vec<(DeviceName, BurnDevice)>> = Mutex::new(Vec::new());

    fn opened() -> MutexGuard<'static, Vec<(DeviceName, BurnDevice)>> {
        OPENED.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn name(number: Number) -> DeviceName {
        opened()[number].0
    }

    pub(super) fn device(number: Number) -> BurnDevice {
        opened()[number].1.clone()
    }

    pub(super) fn open(name: DeviceName) -> Result<Number, DeviceError> {
        let mut opened = opened();
        if let Some(number) = opened.iter().position(|(known, _)| *known == name) {
            return Ok(number);
        }
        let missing = |found| DeviceError::Missing { name, found };
        // Drivers that are not there are a panic in some of Burn's layers, an error in others.
        let device = caught(|| found(name)).and_then(|found| found);
        let device = device.map_err(missing)?;
        caught(|| computes(&device)).and_then(|computed| computed).map_err(missing)?;
        opened.push((name, device));
        Ok(opened.len() - 1)
    }

    fn found(name: DeviceName) -> Result<BurnDevice, String> {
        match name {
            #[cfg(feature = "gpu")]
            DeviceName::Gpu(None) => {
                let device = BurnDevice::wgpu_options().init();
                device.map_err(|error| error.to_string())
            }
            #[cfg(feature = "gpu")]
            DeviceName::Gpu(Some(number)) => listed(burn_tensor::DeviceType::Wgpu, number),
            #[cfg(feature = "cuda")]
            DeviceName::Cuda(number) => {
                listed(burn_tensor::DeviceType::Cuda, number.unwrap_or_default())
            }
            other => Err(format!("this build does not know {other}")),
        }
    }

    /// The device with this number among those that the drivers list.
    fn listed(kind: burn_tensor::DeviceType, number: u16) -> Result<BurnDevice, String> {
        let all = BurnDevice::enumerate(kind).into_vec();
        let count = all.len();
        let device = all.into_iter().nth(usize::from(number));
        device.ok_or_else(|| format!("the drivers list {count}, counted from 0"))
    }

    /// Whether a product comes back right.
    fn computes(device: &BurnDevice) -> Result<(), String> {
        let [a, b] = [[1.0f32, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
            .map(|values| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [2, 2]), device));
        let read = a.matmul(b).try_into_data().map_err(|error| error.to_string())?;
        let found = read.try_into_vec::<f32>().map_err(|error| format!("{error:?}"))?;
        match found == [19.0, 22.0, 43.0, 50.0] {
            true => Ok(()),
            false => Err(format!("the product of two small matrices came back as {found:?}")),
        }
    }

    pub(super) fn guard<T>(number: Number, work: impl FnOnce() -> T) -> Result<T, DeviceError> {
        caught(work).map_err(|found| DeviceError::Stopped { name: name(number), found })
    }

    /// The result of `work`, or the text of its panic.
    fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
        catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            text.unwrap_or_else(|| "a panic without a text".to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let known = [
            ("cpu", DeviceName::Cpu),
            ("gpu", DeviceName::Gpu(None)),
            ("gpu:0", DeviceName::Gpu(Some(0))),
            ("gpu:12", DeviceName::Gpu(Some(12))),
            ("cuda", DeviceName::Cuda(None)),
            ("cuda:3", DeviceName::Cuda(Some(3))),
        ];
        for (text, name) in known {
            assert_eq!(text.parse(), Ok(name));
            assert_eq!(name.to_string(), text);
        }
    }

    #[test]
    fn other_names_are_refused_with_the_known_ones() {
        let bad =
            ["", "CPU", "gpu:", "gpu:-1", "gpu:+1", "gpu:65536", "gpu:0:1", "cpu:0", "cuda:x"];
        for text in bad {
            let error = text.parse::<DeviceName>().expect_err(text).to_string();
            assert!(error.contains("gpu:N") && error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[cfg(not(any(feature = "gpu", feature = "cuda")))]
    #[test]
    fn a_device_that_was_not_built_names_its_feature() {
        for (name, feature) in [("gpu:1", "--features gpu"), ("cuda", "--features cuda")] {
            let name: DeviceName = name.parse().expect("a name");
            let error = Device::open(name).expect_err("not built").to_string();
            assert!(error.contains(feature) && error.contains(&name.to_string()), "{error}");
        }
        assert_eq!(Device::open(DeviceName::Cpu), Ok(Device::CPU));
    }
}
