// Every channel of a map times a factor of its own: see sharpmask_kernels.scale_channels.
#pragma once

#include "../common/tensor_view.h"

namespace sharpmask {

// Writes all of `out`, of the sizes and the dtype of `maps` (batch, channels, height, width). `factor` has
// that dtype and one value for each channel.
void scale_channels(const TensorView& maps, const TensorView& factor, const TensorView& out, int threads);

// The gradient of `factor`: of each channel the sum of grad * maps, in a fixed order, by one thread.
void scale_channels_factor_gradient(const TensorView& grad, const TensorView& maps, const TensorView& out,
                                    int threads);

}  // namespace sharpmask
