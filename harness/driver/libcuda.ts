// SPDX-License-Identifier: MIT
// Calls into the driver library through ffi-rs. Runs only in probe.ts's process: a crash in the library ends it.
import { close, DataType, load, open } from 'ffi-rs';

const LIBRARY = 'cuda';

/** A driver function's result is not CUDA_SUCCESS. */
export interface CudaFailure {
  call: string;
  result: number;
}

export interface Driver {
  /** cuDriverGetVersion: 13000 is 13.0. */
  version(): number;
  init(): void;
  deviceCount(): number;
  device(ordinal: number): number;
  deviceName(device: number): string;
  deviceUuid(device: number): string;
  totalMemory(device: number): bigint;
  primaryRetain(device: number): void;
  primaryRelease(device: number): void;
  /** Bytes that all processes have taken of this device's memory, the caller's context included; makes its primary one current. */
  usedMemory(device: number): bigint;
  close(): void;
}

/** Loads the library; throws what dlopen says. */
export function openDriver(path: string): Driver {
  open({ library: LIBRARY, path });

  // Out parameters are buffers: ffi-rs would lose precision on a 64-bit number.
  const call = (name: string, types: DataType[], values: unknown[]): void => {
    const result = load({
      library: LIBRARY,
      funcName: name,
      retType: DataType.I32,
      paramsType: types,
      paramsValue: values,
    }) as number;
    if (result !== 0) throw { call: name, result } satisfies CudaFailure;
  };
  const out = (bytes: number): Buffer => Buffer.alloc(bytes);
  const BUFFER = DataType.U8Array;
  const INT = DataType.I32;

  return {
    version() {
      const value = out(4);
      call('cuDriverGetVersion', [BUFFER], [value]);
      return value.readInt32LE();
    },
    init: () => call('cuInit', [INT], [0]),
    deviceCount() {
      const value = out(4);
      call('cuDeviceGetCount', [BUFFER], [value]);
      return value.readInt32LE();
    },
    device(ordinal) {
      const value = out(4);
      call('cuDeviceGet', [BUFFER, INT], [value, ordinal]);
      return value.readInt32LE();
    },
    deviceName(device) {
      const value = out(256);
      call('cuDeviceGetName', [BUFFER, INT, INT], [value, value.length, device]);
      const end = value.indexOf(0);
      return value.toString('utf8', 0, end < 0 ? value.length : end);
    },
    deviceUuid(device) {
      const value = out(16);
      call('cuDeviceGetUuid', [BUFFER, INT], [value, device]);
      const hex = value.toString('hex');
      return `GPU-${[hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-')}`;
    },
    totalMemory(device) {
      const value = out(8);
      call('cuDeviceTotalMem_v2', [BUFFER, INT], [value, device]);
      return value.readBigUInt64LE();
    },
    primaryRetain(device) {
      call('cuDevicePrimaryCtxRetain', [BUFFER, INT], [out(8), device]);
    },
    primaryRelease: (device) => call('cuDevicePrimaryCtxRelease_v2', [INT], [device]),
    usedMemory(device) {
      const [context, free, total] = [out(8), out(8), out(8)];
      call('cuDevicePrimaryCtxRetain', [BUFFER, INT], [context, device]);
      call('cuCtxSetCurrent', [DataType.BigInt], [context.readBigUInt64LE()]);
      call('cuMemGetInfo_v2', [BUFFER, BUFFER], [free, total]);
      call('cuDevicePrimaryCtxRelease_v2', [INT], [device]);
      return total.readBigUInt64LE() - free.readBigUInt64LE();
    },
    close: () => close(LIBRARY),
  };
}
