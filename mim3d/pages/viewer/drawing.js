// The canvas: the volumes of one case in NiiVue. Knows nothing of the page around it.
const { Niivue, NVImage, SLICE_TYPE, SHOW_RENDER, MULTIPLANAR_TYPE, DRAG_MODE } = window.niivue;

export const VIEWS = {
  all: [SLICE_TYPE.MULTIPLANAR, SHOW_RENDER.ALWAYS],
  planes: [SLICE_TYPE.MULTIPLANAR, SHOW_RENDER.NEVER],
  axial: [SLICE_TYPE.AXIAL, SHOW_RENDER.NEVER],
  coronal: [SLICE_TYPE.CORONAL, SHOW_RENDER.NEVER],
  sagittal: [SLICE_TYPE.SAGITTAL, SHOW_RENDER.NEVER],
  render: [SLICE_TYPE.RENDER, SHOW_RENDER.AUTO],
};

// NiiVue has one outline for all label maps; here each label map has its own. And while a case is put
// together nothing is drawn: where there is no graphics card, each drawing takes seconds.
class Layered extends Niivue {
  held = false;

  updateGLVolume() {
    if (!this.held) super.updateGLVolume();
  }

  drawScene() {
    if (!this.held) return super.drawScene();
  }

  refreshLayers(volume, layer) {
    this.opts.atlasOutline = volume.outline ?? 0;
    return super.refreshLayers(volume, layer);
  }
}

export class Stage {
  constructor(canvas, onPoint) {
    this.nv = new Layered({
      backColor: [0, 0, 0, 1], crosshairColor: [0.34, 0.71, 0.91, 0.75], fontColor: [0.75, 0.78, 0.82, 1],
      dragAndDropEnabled: false, isResizeCanvas: true, logLevel: "error", loadingText: "",
      multiplanarLayout: MULTIPLANAR_TYPE.GRID, tileMargin: 2, isOrientCube: false,
      multiplanarShowRender: SHOW_RENDER.ALWAYS, dragMode: DRAG_MODE.contrast,
      isCornerOrientationText: false, show3Dcrosshair: false,
      crosshairWidth: 0.25, crosshairWidthUnit: "percent", crosshairGap: 2,
      viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "",
    });
    this.nv.onLocationChange = onPoint;
    this.canvas = canvas;
    this.overlays = new Map();
    this.generation = 0;
  }

  // Another case is on its way: what was asked for before is not drawn any more.
  begin() {
    this.generation++;
  }

  // Opens a volume; nothing where another case has begun meanwhile.
  async opened(buffer, options) {
    const mine = this.generation;
    const volume = await opened(buffer, options);
    return mine === this.generation ? volume : null;
  }

  async start() {
    await this.nv.attachToCanvas(this.canvas, false);
  }

  // While the canvas is hidden it has no size to draw in.
  rest(isHidden) {
    this.nv.held = isHidden;
  }

  // Runs the steps and draws once.
  async together(steps) {
    this.nv.held = true;
    try {
      return await steps();
    } finally {
      this.nv.held = false;
      this.nv.updateGLVolume();
      this.nv.drawScene();
    }
  }

  // One image under everything; returns its grey window.
  async showImage(buffer) {
    const volume = await this.opened(buffer, { colormap: "gray" });
    if (!volume) return null;
    this.clear();
    this.nv.addVolume(volume);
    return this.window();
  }

  // Replaces the image and keeps overlays and crosshair: another channel of the same case.
  async changeImage(buffer) {
    return this.together(() => this.replaceImage(buffer));
  }

  async replaceImage(buffer) {
    const volume = await this.opened(buffer, { colormap: "gray" });
    if (!volume) return null;
    const overlays = [...this.overlays];
    const point = [...this.nv.scene.crosshairPos];
    this.clear();
    this.nv.addVolume(volume);
    for (const [key, overlay] of overlays) this.add(key, overlay);
    this.nv.scene.crosshairPos = point;
    return this.window();
  }

  async showLabels(key, buffer, classes, look) {
    const volume = await this.opened(buffer, {});
    if (!volume || this.overlays.has(key)) return;
    volume.classes = classes;
    paint(volume, look);
    this.add(key, volume);
  }

  add(key, volume) {
    this.overlays.set(key, volume);
    this.nv.addVolume(volume);
  }

  remove(key) {
    const volume = this.overlays.get(key);
    if (!volume) return;
    this.overlays.delete(key);
    this.nv.removeVolume(volume);
  }

  style(key, look) {
    const volume = this.overlays.get(key);
    if (!volume) return;
    paint(volume, look);
    this.nv.updateGLVolume();
  }

  clear() {
    for (const volume of [...this.nv.volumes].reverse()) this.nv.removeVolume(volume);
    this.overlays.clear();
  }

  window() {
    const image = this.nv.volumes[0];
    return { low: image.cal_min, high: image.cal_max, least: image.global_min, most: image.global_max,
      robust: [image.robust_min, image.robust_max] };
  }

  setWindow(low, high) {
    const image = this.nv.volumes[0];
    if (!image || !(high > low)) return;
    image.cal_min = low;
    image.cal_max = high;
    this.nv.updateGLVolume();
  }

  setSmooth(isSmooth) {
    this.nv.setInterpolation(!isSmooth);
  }

  setView(name) {
    const [slices, render] = VIEWS[name];
    this.nv.opts.multiplanarShowRender = render;
    this.nv.setSliceType(slices);
  }

  // Tells what lies under the crosshair, as a click would.
  point() {
    this.nv.createOnLocationChange();
  }

  // To the middle of the largest thing that is labelled, so that a case opens where it is worth it.
  goToLabels() {
    const volume = [...this.overlays.values()][0];
    if (!volume) return;
    const middle = middleOf(volume);
    if (middle) {
      // By the true affine: NiiVue's other one is for volumes that are not oblique.
      this.nv.scene.crosshairPos = this.nv.mm2frac(volume.vox2mm(middle, volume.matRAS).slice(0, 3), 0, true);
      this.nv.drawScene();
    }
  }
}

// look: {opacity, outline, shown, hidden: a Set of values}
function paint(volume, look) {
  const rows = volume.classes;
  const alpha = (row) => (look.hidden.has(row.value) ? 0 : 255);
  volume.setColormapLabel({
    I: [0, ...rows.map((row) => row.index)],
    R: [0, ...rows.map((row) => row.colour[0])],
    G: [0, ...rows.map((row) => row.colour[1])],
    B: [0, ...rows.map((row) => row.colour[2])],
    A: [0, ...rows.map(alpha)],
    labels: ["", ...rows.map((row) => row.name)],
  });
  volume.outline = look.shown && look.outline ? look.opacity : 0;
  volume.opacity = look.shown ? (look.outline ? 0.01 : look.opacity) : 0;
}

async function opened(buffer, options) {
  // With a buffer NiiVue fetches nothing; the name only says how it is to be read.
  return NVImage.loadFromUrl({ url: "volume.nii", name: "volume.nii", buffer, ...options });
}

// The labelled voxel next to the centre of mass of all labelled voxels, along x, y, z.
function middleOf(volume) {
  const [nx, ny] = volume.hdr.dims.slice(1, 3);
  const sum = [0, 0, 0];
  const places = [];
  for (let n = 0; n < volume.img.length; n++) {
    if (volume.img[n] > 0 && volume.img[n] < 255) places.push(n);
  }
  if (!places.length) return null;
  const at = (n) => [n % nx, Math.floor(n / nx) % ny, Math.floor(n / (nx * ny))];
  const stride = Math.max(1, Math.floor(places.length / 20000));
  let count = 0;
  for (let n = 0; n < places.length; n += stride, count++) at(places[n]).forEach((v, a) => (sum[a] += v));
  const mean = sum.map((value) => value / count);
  const far = (n) => at(n).reduce((total, value, axis) => total + (value - mean[axis]) ** 2, 0);
  let best = places[0];
  for (let n = 0; n < places.length; n += stride) if (far(places[n]) < far(best)) best = places[n];
  return at(best);
}
